"""The interleaved paired timer: every comparison of the project is made by `compare`, A against A included."""

from __future__ import annotations

import gc
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.core.errors import BadInput
from headway.core.interrupts import check
from headway.core.statistics import Interval, Verdict, median_ratio, noise_floor, verdict

AGAIN = "again"
"""Name of the arm that runs the baseline a second time."""

LOOK_EVERY = 5
"""Rounds between two looks at the interval's width, so that stopping early does not chase luck."""

FEWEST_ROUNDS = 15

ALIKE = 2.0
"""Arms whose speeds differ by no more than this factor average the same number of calls."""

FASTER = 2.5
"""A first sample this many times shorter than `min_time_s` says that the arm's speed was found wrong."""

BATCHES, BATCH_S = 15, 5e-5
"""How an arm's speed is found before the rounds: the fastest of at most so many batches, each at least this long."""

DEAR = 4
"""Calls that take this many times `min_time_s` are averaged one by one anyway, so their speed need not be known."""

SLOW_S = 1.0
"""A first call this long is not made again to warm up."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Two arms of one run. `ratio` is the median of the paired ratios of time, candidate / baseline: < 1 is faster."""

    candidate: str
    baseline: str
    candidate_s: float
    """Median seconds per call."""
    baseline_s: float
    ratio: Interval
    noise_floor: float | None
    """Largest relative difference that the baseline showed against itself; `None` when it was not run twice."""
    verdict: Verdict

    def text(self) -> str:
        if self.verdict == "too few pairs":
            return f"{self.candidate} / {self.baseline}: time {self.ratio.text()}"
        floor = "not measured" if self.noise_floor is None else f"±{100 * self.noise_floor:.1f}%"
        return f"{self.candidate} / {self.baseline}: time {self.ratio.text()}, noise floor {floor}: {self.verdict}"


@dataclass
class Timing:
    """One run of `compare`: every sample of every arm in seconds per call, index = round."""

    baseline: str
    seed: int
    samples: dict[str, list[float]]
    calls: dict[str, int]
    """Calls that one sample of the arm averages."""
    orders: list[tuple[str, ...]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    finished: bool = False

    @property
    def rounds(self) -> int:
        return len(self.orders)

    def median_s(self, arm: str) -> float:
        """Median seconds per call."""
        ordered = sorted(self.samples[arm])
        half = len(ordered) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2

    @property
    def noise_floor(self) -> float | None:
        if AGAIN not in self.samples:
            return None
        return noise_floor(median_ratio(self.samples[AGAIN], self.samples[self.baseline]))

    def comparison(self, arm: str) -> Comparison:
        """`arm` against the baseline."""
        ratio = median_ratio(self.samples[arm], self.samples[self.baseline])
        floor = self.noise_floor
        return Comparison(
            arm,
            self.baseline,
            self.median_s(arm),
            self.median_s(self.baseline),
            ratio,
            floor,
            verdict(ratio, floor or 0.0),
        )

    @property
    def comparisons(self) -> list[Comparison]:
        """Every candidate against the baseline, in the order they were given."""
        return [self.comparison(arm) for arm in self.samples if arm not in (self.baseline, AGAIN)]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `compare`; `timing` holds the rounds that were completed."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        super().__init__()


def compare(
    candidates: Mapping[str, Call],
    *,
    rounds: int = 40,
    min_time_s: float = 0.005,
    warmup: int = 2,
    baseline: str | None = None,
    seed: int = 0,
    aa: bool | Call = True,
    width: float | None = None,
    time_limit_s: float | None = None,
    fewest: int = 1,
    patience_s: float | None = None,
    settle_s: float = 0.0,
    clock: Callable[[], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Timing:
    """Time callables against each other: each round runs every arm once, in a random order of its own.

    candidates: name -> what to run; `baseline` names the one to compare with (the first, when not given). A device
    that works in the background must be waited for inside the callable.
    rounds: samples per arm. min_time_s: a sample averages as many calls as fill it (fixed after `warmup` calls, of
    which one of a second or more is enough; arms of about the same speed take the same number); an arm that needs
    several calls gets one untimed call before each sample, so that the sample sees its own steady state and not its
    predecessor's caches.
    aa: also run the baseline as the arm `again`; give a callable to run that (a second copy) instead.
    width: stop once every ratio's interval is narrower than this (0.02 = 2%), looked at every few rounds.
    time_limit_s: start no further round after so many seconds, however few were run; with `patience_s`, below
    `fewest` rounds only after that many.
    settle_s: pause before each sample, where an arm's threads may go on spinning after it has returned.
    clock: seconds; by default the wall's. `time.thread_time` leaves out what other processes took, for arms that run
    in this thread alone.
    progress: called with (rounds done, rounds in all).

    Raises `Interrupted`, with what was measured, on Ctrl-C; `BadInput` for arms that cannot be compared.
    """
    arms = dict(candidates)
    clock = clock or time.perf_counter
    baseline = _checked(arms, baseline, rounds)
    if aa:
        arms[AGAIN] = aa if callable(aa) else arms[baseline]
    generator = random.Random(seed)
    timing = Timing(baseline, seed, {name: [] for name in arms}, {}, conditions=conditions())
    began = time.perf_counter()
    limit_s = math.inf if time_limit_s is None else time_limit_s
    longest_s = limit_s if patience_s is None else max(limit_s, patience_s)
    switches = _preemptions()
    collecting = gc.isenabled()
    try:
        timing.calls = _calls(arms, baseline, warmup, min_time_s, clock)
        gc.disable()
        settled = False
        while timing.rounds < rounds:
            spent_s = time.perf_counter() - began
            if timing.rounds and spent_s >= (longest_s if timing.rounds < fewest else limit_s):
                break
            check()
            order = tuple(generator.sample(sorted(arms), len(arms)))
            taken = {name: _sample(arms[name], timing.calls[name], settle_s, clock) for name in order}
            if not settled and any(s * timing.calls[name] < min_time_s / FASTER for name, s in taken.items()):
                timing.calls = _calls(arms, baseline, warmup, min_time_s, clock)  # what was slow was its first call
                settled = True
                continue
            settled = True
            for name, seconds in taken.items():  # a round counts whole or not at all
                timing.samples[name].append(seconds)
            timing.orders.append(order)
            gc.collect(0)  # what this round left in cycles, outside the timed part
            if progress is not None:
                progress(timing.rounds, rounds)
            if width is not None and _narrow(timing, width):
                break
        timing.finished = True
    except KeyboardInterrupt:
        raise Interrupted(timing) from None
    finally:
        if collecting:
            gc.enable()
        _trim(timing)
        timing.conditions |= {"load_after": os.getloadavg()[0], "preemptions": _preemptions() - switches}
    return timing


def _checked(arms: Mapping[str, Call], baseline: str | None, rounds: int) -> str:
    if not arms:
        raise BadInput("nothing to compare", "give at least one callable")
    if AGAIN in arms:
        raise BadInput(f"an arm may not be named {AGAIN!r}", "that name is the baseline's second run; choose another")
    if baseline is not None and baseline not in arms:
        raise BadInput(f"no arm is named {baseline!r}", f"the baseline is one of: {', '.join(arms)}")
    if rounds < 1:
        raise BadInput(f"rounds={rounds}", "at least one round is needed")
    return next(iter(arms)) if baseline is None else baseline


def _calls(
    arms: Mapping[str, Call], baseline: str, warmup: int, min_time_s: float, clock: Callable[[], float]
) -> dict[str, int]:
    """Calls of each arm that fill `min_time_s`.

    An arm about as fast as the baseline takes the baseline's number: samples of unequal length meet unequal numbers
    of preemptions, and identical arms would differ.
    """
    speeds = {id(arm): _fastest(arm, warmup, min_time_s, clock) for arm in {id(a): a for a in arms.values()}.values()}
    fastest = {name: speeds[id(arm)] for name, arm in arms.items()}
    calls = {name: max(1, math.ceil(min_time_s / seconds * (1 - 1e-6))) for name, seconds in fastest.items()}
    same = calls[baseline]
    return {name: same if same / ALIKE <= own <= same * ALIKE else own for name, own in calls.items()}


def _fastest(arm: Call, warmup: int, min_time_s: float, clock: Callable[[], float]) -> float:
    """Seconds per call, the least of many batches too short to be preempted often; a dear arm is only warmed up."""
    best = _timed(arm, 1, clock)
    if best >= SLOW_S:
        return best
    best = min([best, *(_timed(arm, 1, clock) for _ in range(warmup))])
    if best >= DEAR * min_time_s:
        return best
    calls = 1
    while _timed(arm, calls, clock) * calls < BATCH_S:
        calls *= 2
    spent = 0.0
    for batch in range(BATCHES):
        seconds = _timed(arm, calls, clock)
        best, spent = min(best, seconds), spent + seconds * calls
        if batch >= 2 and spent >= DEAR * min_time_s:
            break
    return best


def _sample(arm: Call, calls: int, settle_s: float, clock: Callable[[], float]) -> float:
    if settle_s:
        time.sleep(settle_s)
    if calls > 1:
        arm()
    return _timed(arm, calls, clock)


def _timed(arm: Call, calls: int, clock: Callable[[], float]) -> float:
    """Seconds per call."""
    repeats = range(calls)
    start = clock()
    for _ in repeats:
        arm()
    return max(clock() - start, 1e-9) / calls


def _narrow(timing: Timing, width: float) -> bool:
    if timing.rounds < FEWEST_ROUNDS or timing.rounds % LOOK_EVERY:
        return False
    base = timing.samples[timing.baseline]
    return all(
        median_ratio(samples, base).width < width for name, samples in timing.samples.items() if name != timing.baseline
    )


def _trim(timing: Timing) -> None:
    """Drop the samples of a round that Ctrl-C cut while they were being stored."""
    for samples in timing.samples.values():
        del samples[timing.rounds :]


def _preemptions() -> int:
    """Times the kernel took the processor from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def conditions() -> dict[str, Any]:
    """What a timing depends on besides the code: threads, processors allowed, load."""
    torch = sys.modules.get("torch")
    affinity: Sequence[int] = sorted(os.sched_getaffinity(0))
    return {
        "torch_threads": torch.get_num_threads() if torch else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "processors": len(affinity),
        "affinity": affinity,
        "load_before": os.getloadavg()[0],
    }
