"""The allocation's program: equal to brute force, ordered between its bounds, and honest about what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import Lacking
from headway.planning.allocation import allocate, missing, single_type
from headway.planning.melange_proof import (
    GOLDEN,
    GOLDEN_PRICES,
    GOLDEN_RATES,
    GOLDEN_THROUGHPUT,
    binary,
    exhaustive,
    large_case,
    random_case,
)
from headway.planning.milp import minimise

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("slices", GOLDEN)
def test_the_released_example(slices: int) -> None:
    found = allocate(GOLDEN_RATES.ravel(), 1 / GOLDEN_THROUGHPUT.reshape(2, -1), GOLDEN_PRICES, (None, None), slices)
    assert found is not None
    assert (*found.counts, round(found.cost, 2)) == GOLDEN[slices]


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_it_costs_what_brute_force_and_the_papers_binaries_cost(seed: int) -> None:
    case = random_case(np.random.default_rng(seed))
    wanted, found = exhaustive(*case), allocate(*case)
    assert (found is None) == (wanted is None) == (binary(*case) is None)
    if found is not None:
        assert found.cost == pytest.approx(wanted, abs=1e-6) == binary(*case)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_an_allocation_carries_its_load_and_lies_between_its_bounds(seed: int) -> None:
    rates, seconds, prices, caps, slices = random_case(np.random.default_rng(seed))
    found = allocate(rates, seconds, prices, caps, slices)
    if found is None:
        return
    assert found.shares.sum(axis=1) == pytest.approx(np.ones(len(rates)))
    assert np.isfinite(seconds.T[found.shares > 0]).all()
    loads = (np.where(found.shares > 0, seconds.T, 0) * found.shares * rates[:, None]).sum(axis=0)
    assert (loads <= found.counts + 1e-5).all()
    assert all(cap is None or count <= cap for cap, count in zip(caps, found.counts, strict=True))
    free = allocate(rates, seconds, prices, caps, 0)
    assert free is not None and free.cost <= found.cost + 1e-9
    for at, (price, cap) in enumerate(zip(prices, caps, strict=True)):
        if cap is None:
            assert found.cost <= single_type(rates, seconds[at], price) + 1e-9


def test_buckets_without_requests_take_nothing_and_no_load_needs_no_machine() -> None:
    none = allocate(np.zeros(3), np.ones((2, 3)), [1.0, 2.0], [None, None])
    assert none is not None and none.cost == 0 and not none.counts.any()
    some = allocate(np.array([0.0, 0.5]), np.array([[np.inf, 1.0]]), [1.0], [None])
    assert some is not None and some.counts.tolist() == [1] and not some.shares[0].any()


def test_an_exactly_full_instance_is_enough_and_free_machines_are_used() -> None:
    full = allocate(np.array([0.5, 1.5]), np.array([[1.0, 1 / 3]]), [2.0], [None])
    assert full is not None and full.counts.tolist() == [1]
    free = allocate(np.array([1.0]), np.array([[1.0], [0.1]]), [0.0, 1.0], [None, None])
    assert free is not None and free.cost == 0


def test_caps_that_are_too_low_are_named_with_the_cheapest_way_out() -> None:
    rates, seconds = np.array([4.0]), np.array([[1.0], [0.25]])
    assert allocate(rates, seconds, [1.0, 3.0], [2, 0]) is None
    more, cost = missing(rates, seconds, [1.0, 3.0], [2, 0])
    assert more.tolist() == [2, 0] and cost == 2.0


def test_a_solver_out_of_time_gives_what_it_has_with_its_gap() -> None:
    rates, seconds, prices = large_case(np.random.default_rng(0))
    found = allocate(rates, seconds, prices, [None] * 4, 8, time_limit_s=1e-4)
    assert found is not None
    if not found.optimal:
        assert found.bound <= found.cost
    best = allocate(rates, seconds, prices, [None] * 4, 8, time_limit_s=60)
    assert best is not None and best.optimal and best.cost <= found.cost


def test_a_program_out_of_time_with_nothing_in_hand_says_so() -> None:
    random = np.random.default_rng(1)
    weights = random.integers(1, 10**6, (8, 60)).astype(float)
    target = weights.sum(axis=1) // 2
    whole = np.ones(60, bool)
    with pytest.raises(Lacking, match="time_limit_s"):
        minimise(np.ones(60), weights, target, target, np.ones(60), whole, time_limit_s=0.01)
