"""Allocation: within the loss limit always, and as cheap as brute force on the convex hull."""

from __future__ import annotations

import itertools
from fnmatch import fnmatchcase

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.model import Site
from headway.optimize.table import KEEP, Choice, ChoiceTable, patterns


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


@given(st.sets(st.tuples(st.integers(0, 12), st.sampled_from(["a.q", "a.k", "m.up"])), min_size=1))
def test_patterns_match_exactly_the_chosen(chosen: set[tuple[int, str]]) -> None:
    names = [f"layers.{i}.{role}" for i in range(13) for role in ("a.q", "a.k", "m.up")]
    wanted = sorted(f"layers.{i}.{role}" for i, role in chosen)
    found = patterns(wanted, names)
    assert sorted(n for n in names if any(fnmatchcase(n, pattern) for pattern in found)) == wanted
