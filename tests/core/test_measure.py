"""The timer on a simulated clock: what it counts, pairs, stops and keeps."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from clock import Machine

from headway.core import measure
from headway.core.errors import BadInput
from headway.core.measure import AGAIN, Interrupted, Timing, compare

Make = Callable[..., Machine]


def test_medians_ratios_and_calls_are_exact_on_a_quiet_machine(machine: Make) -> None:
    here = machine(quiet=True)
    timing = compare({"a": here.arm(0.001), "b": here.arm(0.0025), "c": here.arm(0.02)}, rounds=10, min_time_s=0.005)
    assert timing.calls == {"a": 5, "b": 2, "c": 1, AGAIN: 5}
    found = {c.candidate: c for c in timing.comparisons}
    assert list(found) == ["b", "c"]
    assert found["b"].ratio.value == pytest.approx(2.5) and found["b"].verdict == "slower"
    assert found["c"].candidate_s == pytest.approx(0.02) and found["c"].baseline_s == pytest.approx(0.001)
    assert found["b"].noise_floor == pytest.approx(0, abs=1e-9)
    assert timing.rounds == 10 and timing.finished


def test_arms_about_as_fast_average_the_same_number_of_calls_whatever_the_noise(machine: Make) -> None:
    """Samples of unequal length meet unequal numbers of preemptions: then A against A would differ."""
    for seed in range(60):
        here = machine(seed, neighbours=6, jitter=0.1)
        calls = compare({"a": here.arm(0.0001), "b": here.arm(0.00013)}, rounds=1, seed=seed).calls
        assert len(set(calls.values())) == 1


def test_the_order_of_arms_is_random_per_round_and_follows_the_seed(machine: Make) -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        here = machine()
        return compare({"a": here.arm(0.01), "b": here.arm(0.01)}, rounds=30, seed=seed).orders

    first = orders(1)
    assert first == orders(1) != orders(2)
    assert len(set(first)) == 6, "all orders of three arms occur"
    assert all(sorted(order) == ["a", AGAIN, "b"] for order in first)


def test_the_baseline_can_be_named_and_run_again_as_a_second_copy(machine: Make) -> None:
    here = machine(quiet=True)
    timing = compare({"b": here.arm(0.02), "a": here.arm(0.01)}, rounds=8, baseline="a", aa=here.arm(0.011))
    assert timing.comparison("b").ratio.value == pytest.approx(2)
    assert timing.noise_floor == pytest.approx(0.1)


def test_without_a_second_run_the_floor_is_unknown(machine: Make) -> None:
    here = machine(quiet=True)
    only = compare({"a": here.arm(0.01), "b": here.arm(0.02)}, rounds=8, aa=False).comparisons[0]
    assert only.noise_floor is None and "not measured" in only.text() and only.verdict == "slower"


def test_comparisons_print_the_floor_beside_the_ratio(machine: Make) -> None:
    here = machine(3)
    text = compare({"a": here.arm(0.01), "b": here.arm(0.02)}, rounds=20).comparisons[0].text()
    assert text.startswith("b / a: time ") and "noise floor ±" in text and text.endswith("slower")


def test_a_width_stops_early_and_a_time_limit_stops_at_once(machine: Make) -> None:
    here = machine(quiet=True)
    arms = {"a": here.arm(0.01), "b": here.arm(0.01)}
    assert compare(arms, rounds=100, width=0.01).rounds == measure.FEWEST_ROUNDS
    assert compare(arms, rounds=100, time_limit_s=0.0).rounds == 1
    assert 2 <= compare(arms, rounds=100, time_limit_s=0.5).rounds < 15


def test_below_the_fewest_rounds_patience_is_the_limit(machine: Make) -> None:
    def rounds(**limits: float) -> int:
        here = machine(quiet=True)
        return compare({"a": here.arm(3.0), "b": here.arm(3.0)}, rounds=40, fewest=7, **limits).rounds

    assert rounds(time_limit_s=12.0) == 1
    assert rounds(time_limit_s=12.0, patience_s=30.0) == 3
    assert rounds(time_limit_s=12.0, patience_s=300.0) == 7
    assert rounds(time_limit_s=90.0, patience_s=12.0) == 10


def counted(here: Machine, *seconds: float) -> tuple[Callable[[], None], list[float]]:
    """An arm that takes each of the times once and the last from then on, and the times at which it was called."""
    arms, called = [here.arm(each) for each in seconds], []

    def call() -> None:
        called.append(here.now)
        arms[min(len(called), len(arms)) - 1]()

    return call, called


def test_a_slow_arm_is_warmed_up_by_one_call(machine: Make) -> None:
    here = machine(quiet=True)
    (a, a_called), (b, b_called) = counted(here, 3.0), counted(here, 2.0)
    compare({"a": a, "b": b}, rounds=1)
    assert (len(a_called), len(b_called)) == (3, 2), "the baseline runs twice in a round"
    assert compare({"a": here.arm(0.02)}, rounds=2, warmup=0).rounds == 2


def test_an_arm_whose_first_call_alone_is_slow_is_averaged_like_the_others(machine: Make) -> None:
    here = machine(quiet=True)
    timing = compare({"a": here.arm(0.001), "b": counted(here, 3.0, 0.001)[0]}, rounds=6)
    assert timing.calls == {"a": 5, "b": 5, AGAIN: 5}
    assert timing.rounds == len(timing.samples["b"]) == 6
    assert timing.median_s("b") == pytest.approx(0.001)


@pytest.mark.parametrize(("seconds", "untimed"), [(0.001, 1), (0.02, 0)])
def test_an_arm_of_several_calls_gets_one_untimed_before_each_sample(
    seconds: float, untimed: int, machine: Make
) -> None:
    here = machine(quiet=True)
    call, called = counted(here, seconds)
    read: list[float] = []

    def clock() -> float:
        read.append(here.now)
        return here.now

    timing = compare({"a": call}, rounds=4, clock=clock)
    samples = 2 * timing.rounds  # the baseline's and its second run's
    starts, ends = read[-2 * samples :: 2], read[-2 * samples + 1 :: 2]
    outside = sum(end <= at < start for end, start in zip(ends, starts[1:], strict=False) for at in called)
    inside = [sum(start <= at < end for at in called) for start, end in zip(starts, ends, strict=True)]
    assert inside == [timing.calls["a"]] * samples
    assert outside == untimed * (samples - 1)


def test_a_wide_interval_goes_on_to_the_end(machine: Make) -> None:
    here = machine(0, jitter=0.3)
    assert compare({"a": here.arm(0.01), "b": here.arm(0.01)}, rounds=40, width=0.01).rounds == 40


def test_ctrl_c_keeps_whole_rounds_and_restores_the_collector(machine: Make) -> None:
    here = machine(quiet=True)
    count = 0

    def interrupted() -> None:
        nonlocal count
        count += 1
        if count == 40:
            raise KeyboardInterrupt
        here.arm(0.01)()

    with pytest.raises(Interrupted) as caught:
        compare({"a": here.arm(0.01), "b": interrupted}, rounds=100)
    timing = caught.value.timing
    assert isinstance(caught.value, KeyboardInterrupt)
    assert not timing.finished and timing.rounds > 10
    assert {len(samples) for samples in timing.samples.values()} == {timing.rounds}
    assert timing.comparisons[0].ratio.value == pytest.approx(1)
    assert gc.isenabled()


def test_ctrl_c_during_warm_up_keeps_an_empty_timing() -> None:
    def at_once() -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        compare({"a": at_once})
    assert caught.value.timing.rounds == 0


def test_a_failing_arm_fails_the_comparison(machine: Make) -> None:
    with pytest.raises(ZeroDivisionError):
        compare({"a": lambda: 1 / 0})
    assert gc.isenabled()


def test_progress_is_told_every_round(machine: Make) -> None:
    here = machine()
    seen: list[tuple[int, int]] = []
    compare({"a": here.arm(0.01)}, rounds=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_bad_arms_are_refused() -> None:
    for arms, options, words in (
        ({}, {}, "nothing to compare"),
        ({AGAIN: int}, {}, AGAIN),
        ({"a": int}, {"baseline": "x"}, "no arm"),
        ({"a": int}, {"rounds": 0}, "rounds=0"),
    ):
        with pytest.raises(BadInput, match=words):
            compare(arms, **options)  # type: ignore[arg-type]


def test_a_real_run_records_its_conditions() -> None:
    timing = compare({"sum": lambda: sum(range(1000)), "more": lambda: sum(range(9000))}, rounds=8, min_time_s=0.0005)
    assert timing.comparisons[0].ratio.value > 1
    assert timing.conditions["processors"] == len(timing.conditions["affinity"]) > 0
    assert {"load_before", "load_after", "preemptions", "torch_threads"} <= set(timing.conditions)
    assert all(seconds > 0 for samples in timing.samples.values() for seconds in samples)


def test_medians_of_even_and_odd_series() -> None:
    timing = Timing("a", 0, {"a": [3.0, 1.0, 2.0], "b": [4.0, 1.0]}, {})
    assert (timing.median_s("a"), timing.median_s("b")) == (2.0, 2.5)
