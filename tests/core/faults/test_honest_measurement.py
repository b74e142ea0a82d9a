"""Honest measurement: A against A covers 1 as often as promised, a planted delay is found, noise widens intervals.

The short version runs the real timer on a simulated noisy machine; the nightly one on this machine.
"""

from __future__ import annotations

import statistics as stdlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
from clock import Machine

from headway.core.measure import AGAIN, compare

RUNS = 200
DELAY = 1.03
IDLE = 0.02
"""Median width of the intervals of A against A on a machine with nothing else to do."""


@dataclass(frozen=True)
class Found:
    """Of 200 comparisons: the share of A/A intervals that cover 1, of planted delays found, and the median width."""

    covers: float
    planted: float
    width: float


def simulated(make: Callable[..., Machine], neighbours: int, planted: float) -> tuple[float, float, float]:
    """(share of intervals that cover 1, share called slower, median width) of 200 comparisons."""
    covers = slower = 0
    widths = []
    for seed in range(RUNS):
        here = make(seed, neighbours=neighbours)
        found = compare({"a": here.arm(0.002), "b": here.arm(0.002 * planted)}, seed=seed).comparisons[0]
        covers += not found.ratio.excludes(1.0)
        slower += found.verdict == "slower"
        widths.append(found.ratio.width)
    return covers / RUNS, slower / RUNS, stdlib.median(widths)


def test_two_hundred_a_a_runs_cover_one_idle_and_beside_a_neighbour(
    machine: Callable[..., Machine], figures: Callable[..., None]
) -> None:
    idle, _, narrow = simulated(machine, 0, 1.0)
    busy, slower, wide = simulated(machine, 1, 1.0)
    figures(runs=2 * RUNS, idle_covers=idle, busy_covers=busy, idle_width=narrow, busy_width=wide)
    assert 0.92 <= idle <= 0.98
    assert 0.92 <= busy <= 0.98
    assert wide > narrow, "noise widens the interval"
    assert slower <= 0.02, "the floor keeps A against A from being called a difference"


def test_a_planted_delay_of_three_percent_is_found(
    machine: Callable[..., Machine], figures: Callable[..., None]
) -> None:
    covers, slower, _ = simulated(machine, 0, DELAY)
    figures(runs=RUNS, planted_found=slower, covers_one=covers)
    assert slower >= 0.90
    assert covers <= 0.10


def work() -> None:
    total = 0
    for number in range(2000):
        total += number * number


def delayed(share: float) -> Callable[[], None]:
    """`work` that takes `share` longer: the same loop, longer by whole iterations."""
    rounds = round(2000 * share)

    def longer() -> None:
        total = 0
        for number in range(rounds):
            total += number * number

    return longer


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps one processor busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.nightly
def test_this_machine_alone_and_beside_a_neighbour(figures: Callable[..., None]) -> None:
    """Whether it was alone shows in the width of A against A; where it was not, nothing is known, and it fails."""
    found = {}
    for level in ("idle", "busy"):
        covers = planted = 0
        widths = []
        with neighbour() if level == "busy" else nullcontext():
            for seed in range(RUNS):
                timing = compare({"a": work, "late": delayed(DELAY)}, seed=seed, min_time_s=0.002)
                same, late = timing.comparison(AGAIN), timing.comparison("late")
                covers += not same.ratio.excludes(1.0)
                planted += late.verdict == "slower"
                widths.append(same.ratio.width)
        found[level] = Found(covers / RUNS, planted / RUNS, stdlib.median(widths))
    idle, busy = found["idle"], found["busy"]
    for level, at in found.items():
        figures(runs=RUNS, level=level, a_a_covers_one=at.covers, planted_found=at.planted, median_width=at.width)
    assert 0.92 <= idle.covers <= 0.98
    assert 0.92 <= busy.covers <= 0.98
    assert idle.width < IDLE, f"not idle: A against A is {idle.width:.3f} wide; run it where nothing else runs"
    assert idle.planted >= 0.90
    assert busy.width > idle.width, "noise widens the interval"
