"""The most probable network under a limit is the one that enumeration finds."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headway.vision.search.derive import argmax, candidates, cost, most_probable


@given(st.integers(0, 2**32), st.floats(0.05, 1.2))
def test_the_dynamic_programme_finds_what_enumeration_finds(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    p = [rng.dirichlet(np.ones(n)) for n in (3, 4, 2)]
    costs = [rng.integers(1, 20, n).astype(float) for n in (3, 4, 2)]
    limit = 2.0 + share * sum(c.max() for c in costs)
    paths = [path for path in itertools.product(*map(range, (3, 4, 2))) if cost(path, costs, 2.0) <= limit]
    found = most_probable(p, costs, 2.0, limit)
    if not paths:
        assert found is None
        return
    assert found is not None and cost(found, costs, 2.0) <= limit

    def chance(path: tuple[int, ...]) -> float:
        return float(np.prod([row[k] for row, k in zip(p, path, strict=True)]))

    # a network whose cost fills the last cell of the grid may be passed over
    inside = [path for path in paths if cost(path, costs, 2.0) <= limit - 4 * (limit - 2.0) / 2000]
    if inside:
        assert chance(tuple(found)) >= max(map(chance, inside)) * (1 - 1e-9)


def test_the_argmax_is_tried_first_where_it_fits() -> None:
    p = [np.array([0.9, 0.1]), np.array([0.2, 0.8])]
    costs = [np.array([5.0, 1.0]), np.array([1.0, 4.0])]
    tries, ladder = candidates(p, costs, 0.0, 10.0)
    assert tries[0] == argmax(p) == [0, 1] and [1, 0] in ladder
    tries, _ = candidates(p, costs, 0.0, 6.1)
    assert tries[0] == [0, 0] and all(cost(path, costs, 0.0) <= 6.1 for path in tries)
