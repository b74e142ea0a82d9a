"""Cache levels are found from their own behaviour when nobody names them."""

import math

import pytest
from hardware_examples import GIB, KIB, MIB, FakeInstruments
from hypothesis import given
from hypothesis import strategies as st

from headway.hardware.bench import Bench
from headway.hardware.levels import effective_end, find_caches, measure_levels, steps
from headway.hardware.machine import Cache, Machine


def machine(caches, cpus=(0, 1)):
    return Machine("Example", "x86_64", (), cpus, None, 8 * GIB, 4 * GIB, "6", tuple(caches))


def bench(instruments=None, cpus=(0, 1)):
    return Bench(instruments or FakeInstruments(), cpus, 0.001)


def test_named_caches_are_measured():
    named = [Cache(1, 32 * KIB, 1), Cache(2, MIB, 1), Cache(3, 32 * MIB, 2)]
    levels = measure_levels(machine(named), bench(), points=4)
    assert [level.level for level in levels] == ["L1", "L2", "L3", "DRAM"]
    assert [level.read_bytes_per_s_one_core for level in levels] == [2e11, 1e11, 9e10, 3e10]
    assert [level.read_bytes_per_s for level in levels] == [4e11, 2e11, 1.8e11, 6e10]
    assert [level.latency_s for level in levels] == [1e-9, 4e-9, 1.2e-8, 1e-7]
    assert levels[2].holds_bytes == 24 * MIB  # neighbours hold the rest
    assert levels[3].size_bytes == 8 * GIB


def test_unnamed_caches_are_found():
    assert find_caches(bench()) == [Cache(1, 32 * KIB, 1), Cache(2, MIB, 1), Cache(3, 32 * MIB, 1)]
    levels = measure_levels(machine([]), bench(), points=4)
    assert [level.level for level in levels] == ["L1", "L2", "L3", "DRAM"]


def test_a_machine_without_any_cache_has_dram():
    flat = FakeInstruments(caches=((None, 3e10, 1e-7),))
    assert find_caches(bench(flat)) == []
    assert [level.level for level in measure_levels(machine([]), bench(flat), points=4)] == ["DRAM"]


def test_one_core():
    levels = measure_levels(machine([Cache(1, 32 * KIB, 1)], cpus=(3,)), bench(cpus=(3,)), points=2)
    assert levels[0].read_bytes_per_s == levels[0].read_bytes_per_s_one_core


@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=4),
    st.lists(st.floats(2.5, 12), min_size=4, max_size=4),
    st.floats(0.9, 1.1),
)
def test_every_plateau_but_the_last_is_a_cache(lengths, ratios, wobble):
    curve, size, cost = [], 1024, 1e-9
    ends = []
    for length, ratio in zip(lengths, ratios, strict=False):
        for index in range(length):
            curve.append((size, cost * (wobble if index % 2 else 1)))
            size *= 2
        ends.append(curve[-1][0])
        cost *= ratio
    assert steps(curve) == ends[:-1]


@given(st.integers(1, 16), st.floats(0.05, 1.2))
def test_the_end_of_a_level_is_the_last_size_at_its_rate(points, share):
    size, real = 1 << 24, int((1 << 24) * share)
    found = effective_end(size, lambda s: 9e10 if s <= real else 3e10, 9e10, 3e10, points)
    grid = size / points
    if share >= 1:
        assert found == size
    elif real >= grid:
        assert real - grid <= found <= real
    else:
        assert found < grid


def test_the_border_is_the_geometric_mean():
    border = math.sqrt(9e10 * 1e10)
    assert effective_end(1000, lambda s: border * 1.01, 9e10, 1e10, 4) == 1000
    assert effective_end(1000, lambda s: border * 0.99, 9e10, 1e10, 4) == pytest.approx(125)
