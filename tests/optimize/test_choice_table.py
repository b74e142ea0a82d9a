"""Allocation: within the loss limit always, and as cheap as brute force on the convex hull."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.model import Site
from headway.optimize.table import KEEP, Choice, ChoiceTable


def table(seed: int, sites: int, choices: int) -> ChoiceTable:
    rng = np.random.default_rng(seed)
    loss = rng.exponential(1.0, (sites, choices))
    loss[:, 0] = 0.0
    loss[rng.random((sites, choices)) < 0.1] = np.inf
    loss[:, 0] = 0.0
    nbytes = rng.integers(1, 100, (sites, choices)).astype(float)
    nbytes[:, 0] = 120.0
    names = tuple(Site(f"layers.{i}.w", 1, 1) for i in range(sites))
    options = (KEEP, *(Choice("s", (("bits", i),)) for i in range(1, choices)))
    forms = tuple(tuple("f" for _ in range(choices)) for _ in range(sites))
    return ChoiceTable(names, options, loss, nbytes, nbytes, forms)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5), st.floats(0.0, 6.0))
def test_allocation_holds_the_limit_and_is_nearly_the_best(seed: int, sites: int, choices: int, limit: float) -> None:
    made = table(seed, sites, choices)
    picked = made.allocate(made.nbytes, limit)
    assert made.total(made.loss, picked) <= limit + 1e-9
    best = min(
        made.total(made.nbytes, np.array(combination))
        for combination in itertools.product(range(choices), repeat=sites)
        if made.total(made.loss, np.array(combination)) <= limit
    )
    # The relaxation's gap is at most what one site can cost.
    assert best <= made.total(made.nbytes, picked) <= best + 120.0


def test_a_kind_that_loses_nothing_does_not_allow_what_is_forbidden() -> None:
    made = table(3, 6, 5)
    with np.errstate(invalid="raise"):
        scaled = made.scaled(lambda kind: 0.0)
    assert np.array_equal(np.isinf(scaled.loss), np.isinf(made.loss))
    assert not scaled.loss[np.isfinite(made.loss)].any()
