"""Which candidate is chosen, and which are on the front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.core.budget import Budget, Objective
from headway.core.recipe import Recipe
from headway.optimize.candidate import Candidate, choose, dominates, pareto

BUDGET, SIZE = Budget.parse("quality>=0.9, size<=100B"), Objective.parse("size")


def candidate(quality: float, low: float, size: float) -> Candidate:
    return Candidate(Recipe(), measured={"quality": quality, "quality_low": low, "size_bytes": size})


def test_one_whose_interval_leaves_room_goes_before_a_smaller_one_that_just_holds() -> None:
    safe, close = candidate(0.95, 0.93, 90), candidate(0.91, 0.85, 80)
    assert choose([close, safe], BUDGET, SIZE) == (safe, True)
    assert choose([close, candidate(0.8, 0.7, 10)], BUDGET, SIZE) == (close, True)
    smaller = candidate(0.96, 0.94, 70)
    assert choose([safe, close, smaller], BUDGET, SIZE) == (smaller, True)


def test_where_none_holds_the_one_whose_worst_miss_is_smallest_is_nearest() -> None:
    near, far = candidate(0.85, 0.8, 105), candidate(0.899, 0.89, 200)
    assert choose([far, near], BUDGET, SIZE) == (near, False)


points = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda p: candidate(p[0] / 5, 0.0, float(p[1])))


@given(st.lists(points, min_size=1, max_size=12))
def test_the_front_is_what_no_other_dominates(candidates: list[Candidate]) -> None:
    front = pareto(candidates)
    assert front
    for each in candidates:
        better = [
            other
            for other in candidates
            if other.measured["quality"] >= each.measured["quality"]
            and other.measured["size_bytes"] <= each.measured["size_bytes"]
            and other.measured != each.measured
        ]
        assert (each in front) == (not better)
        assert any(dominates(other, each) for other in candidates) == bool(better)
