"""Devices of two lanes: nobody is faster beside another than alone, idle shares are lent, and bandwidth is split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_traces import COST

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load
from headway.serving.devices import MeasuredLanes, Roofline

ONE = IterationTime((0, 8, 64), (0.012, 0.02, 0.16), 2e-6, 1.5e-6, 1e-5, 1e-5)
CORES = MeasuredLanes((ONE, COST), contention=0.3)
A100 = Roofline(170e12, 2e12, 16e9, 16e9, 5e5, 131072.0, 1e-3)
PROMPT = Load(512, 512 * 256.0, 0, 0, 1, 1)
ANSWERS = Load(32, 0.0, 32, 32 * 300, 32, 32)
shares = st.floats(0.05, 0.95)
rows = st.integers(0, 200)
loads = st.builds(
    Load, st.integers(1, 2000), st.floats(0, 1e6), rows, st.integers(0, 100_000), st.integers(1, 200), rows
)


@pytest.mark.parametrize("device", [CORES, A100])
@given(first=loads, second=loads, share=shares)
def test_a_lane_beside_another_is_never_faster_than_alone(
    device: MeasuredLanes | Roofline, first: Load, second: Load, share: float
) -> None:
    split = {"a": share, "b": 1.0 - share}
    both = device.seconds({"a": first, "b": second}, split)
    for lane, load in (("a", first), ("b", second)):
        assert both[lane] >= device.seconds({lane: load}, split)[lane] * (1 - 1e-9)


@pytest.mark.parametrize("device", [CORES, A100])
@given(load=loads, share=shares)
def test_an_idle_lane_lends_its_share(device: MeasuredLanes | Roofline, load: Load, share: float) -> None:
    assert device.seconds({"a": load}, {"a": share, "b": 1 - share}) == device.seconds({"a": load}, {"a": 1.0, "b": 1})


@pytest.mark.parametrize("device", [CORES, A100])
@given(share=shares, more=shares)
def test_more_share_is_never_slower(device: MeasuredLanes | Roofline, share: float, more: float) -> None:
    low, high = sorted((share, more))
    times = [device.seconds({"a": PROMPT, "b": ANSWERS}, {"a": s, "b": 1 - s}) for s in (low, high)]
    assert times[1]["a"] <= times[0]["a"] * (1 + 1e-9)


def test_cores_between_two_numbers_are_had_for_a_part_of_the_time() -> None:
    assert CORES.alone(PROMPT, 0.5) == pytest.approx(ONE(PROMPT))
    assert CORES.alone(PROMPT, 0.25) == pytest.approx(2 * ONE(PROMPT))
    assert 1 / CORES.alone(PROMPT, 0.75) == pytest.approx((1 / ONE(PROMPT) + 1 / COST(PROMPT)) / 2)


def test_shares_above_the_whole_compete() -> None:
    both = {"a": PROMPT, "b": ANSWERS}
    assert CORES.seconds(both, {"a": 0.8, "b": 1.0}) == CORES.seconds(both, {"a": 8 / 18, "b": 10 / 18})


def test_two_lanes_that_only_move_memory_halve_each_other() -> None:
    alone = A100.seconds({"a": ANSWERS}, {})["a"]
    both = A100.seconds({"a": ANSWERS, "b": ANSWERS}, {"a": 0.5, "b": 0.5})
    assert both["a"] == both["b"] == pytest.approx(2 * alone, rel=0.15)


def test_a_prompt_and_answers_overlap_better_than_in_turns() -> None:
    split = {"a": 0.6, "b": 0.4}
    both = A100.seconds({"a": PROMPT, "b": ANSWERS}, split)
    alone = {lane: A100.seconds({lane: load}, {})[lane] for lane, load in (("a", PROMPT), ("b", ANSWERS))}
    assert alone["a"] / both["a"] + alone["b"] / both["b"] > 1.2


def test_the_cost_that_schedulers_believe_follows_the_roofline() -> None:
    cost = A100.cost()
    for load in (PROMPT, ANSWERS):
        assert cost(load) == pytest.approx(A100(load), rel=0.1)


def test_no_core_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="one core"):
        MeasuredLanes(())
