"""What proofs of two-lane schedulers share: both lanes of a real model at work, pages over random steps, goodput.

The machine is measured by the number of cores, twice: schedulers plan with the first table, the simulator's device is
the second, and how much lanes slow each other down is measured with both at work.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from headway.hardware.iteration_time import IterationTime, Load
from headway.llm.native import PAGE_TOKENS, NativeRuntime, NativeSession
from headway.serving.capacity import attained, capacity
from headway.serving.devices import MeasuredLanes
from headway.serving.job import Job
from headway.serving.measuring import measure
from headway.serving.outcome import Outcome
from headway.serving.proof_runs import Stand
from headway.serving.schedulers.base import SLO, Batch, Limits, Scheduler
from headway.serving.schedulers.two_lanes import DECODE, PREFILL
from headway.serving.simulator import Device, Setting, simulate
from headway.serving.state import State
from headway.serving.trace import Trace

COST = IterationTime((0, 8, 64), (0.01, 0.01, 0.08), 1e-6, 1e-6, 1e-5, 1e-5)
"""Of nothing in particular, for walks."""


@dataclass(frozen=True)
class Work:
    """What a lane repeats: a chunk of a prompt after `context` tokens, or a token for each of `count` sequences."""

    chunk: int
    count: int
    context: int

    @property
    def load(self) -> Load:
        if self.chunk:
            return Load(self.chunk, self.chunk * (self.context + self.chunk / 2), 0, 0, 1, 0)
        return Load(self.count, 0.0, self.count, self.count * self.context, self.count, self.count)

    @property
    def tokens(self) -> int:
        return self.chunk or self.count


class Pair:
    """Both lanes of one model; `seconds` of each step while the other lane (if it has work) was at work too."""

    def __init__(self, runtime: NativeRuntime, seed: int = 0) -> None:
        self.runtime = runtime
        self.single = copy.copy(runtime)
        self.single.threads = 1
        self.lanes = runtime.lanes()
        self._random = np.random.default_rng(seed)
        self._pool: dict[tuple[int, int], list[NativeSession]] = {}

    def alone(self, work: Work, seconds: float, cores: int = 1) -> list[float]:
        """Seconds of each step on that many cores, nothing beside it."""
        runtime = self.single if cores == 1 else self.runtime
        step = self._step(work, lambda s, t, w: runtime.step(s, t, wanted=w), 0)
        return _until(step, seconds)

    def both(
        self,
        first: Work,
        second: Work,
        seconds: float,
        around: Callable[[Callable[[], float]], Callable[[], float]] | None = None,
    ) -> tuple[list[float], list[float]]:
        """Both lanes at work: seconds of each step of either, without the first and the last of each.

        around: what the second lane does about each of its steps.
        """
        works = (first, second)
        steps = [
            self._step(work, lambda s, t, w, lane=lane: self.lanes.step(lane, s, t, w), lane)  # type: ignore[misc]
            for lane, work in enumerate(works)
        ]
        if around is not None:
            steps[1] = around(steps[1])
        times: list[list[float]] = [[], []]
        stop = threading.Event()

        def go(lane: int) -> None:
            while not stop.is_set():
                times[lane].append(steps[lane]())

        threads = [threading.Thread(target=go, args=(lane,)) for lane in (0, 1)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        while min(len(each) for each in times) < 3 and all(thread.is_alive() for thread in threads):
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        return times[0][1:-1], times[1][1:-1]  # the last of one lane may have run alone

    def _step(self, work: Work, run: Callable[..., object], lane: int) -> Callable[[], float]:
        vocab = self.runtime.architecture.vocab
        sessions = self._sessions(lane, work.context, 1 if work.chunk else work.count)
        tokens = [self._random.integers(0, vocab, work.chunk or 1) for _ in sessions]
        wanted = [not work.chunk] * len(sessions)

        def step() -> float:
            begin = time.perf_counter()
            run(sessions, tokens, wanted)
            seconds = time.perf_counter() - begin
            for session in sessions:
                session.rewind(work.context)
            return seconds

        return step

    def _sessions(self, lane: int, context: int, count: int) -> list[NativeSession]:
        held = self._pool.setdefault((lane, context), [])
        while len(held) < count:
            session = self.runtime.begin()
            for at in range(0, context, 512):
                session.feed(self._random.integers(0, self.runtime.architecture.vocab, min(512, context - at)))
            held.append(session)
        return held[:count]


def _until(step: Callable[[], float], seconds: float) -> list[float]:
    step()
    end = time.perf_counter() + seconds
    times = []
    while time.perf_counter() < end or len(times) < 3:
        times.append(step())
    return times


@dataclass
class LaneStand:
    """A `Stand` with its machine measured on one core too."""

    stand: Stand

    @cached_property
    def pair(self) -> Pair:
        return Pair(self.stand.runtime, self.stand.context.seed)

    def _one_core(self, seed: int) -> IterationTime:
        count = 60 if self.stand.context.quick else 110
        return measure(self.pair.single, count=count, seed=seed, progress=self.stand.context.progress).fit()

    @cached_property
    def device(self) -> MeasuredLanes:
        """The simulator's machine: the second table by cores, and contention as both lanes show it."""
        stand = self.stand
        tables = (self._one_core(stand.context.seed + 1), stand.device_cost)
        quiet = MeasuredLanes(tables)
        seconds = 1.5 if stand.context.quick else 4.0
        found = []
        for prompt, answers in ((Work(128, 0, 128), Work(0, 2, 256)), (Work(64, 0, 896), Work(0, 8, 512))):
            self.pair.lanes.share(0.5)
            times = self.pair.both(prompt, answers, seconds)
            moving = quiet.moving(prompt.load) * quiet.moving(answers.load)
            for work, measured in zip((prompt, answers), times, strict=True):
                alone = float(np.median(self.pair.alone(work, seconds / 2)))
                found.append((float(np.median(measured)) / alone - 1.0) / max(moving, 0.05))
        return MeasuredLanes(tables, max(float(np.median(found)), 0.0))

    def simulated(
        self, scheduler: Scheduler, trace: Trace, slo: SLO | None = None, pages: int = 0, device: Device | None = None
    ) -> Outcome:
        """A trace on this machine, for schedulers of one lane and of two."""
        setting = Setting(pages or self.stand.pages, PAGE_TOKENS, self.stand.limits(), slo or SLO())
        return simulate(trace, scheduler, device or self.device, setting, cost=self.stand.cost)


def goodput(
    run: Callable[[float], Outcome], slo: SLO, guess: float, tolerance: float = 0.02, most_runs: int = 9
) -> float:
    """The highest rate at which the SLO's share of requests still meets both limits."""
    return capacity(run, slo, guess, tolerance=tolerance, most_runs=most_runs, held=attained).rate


def lognormal(count: int, prompt: tuple[float, float], output: tuple[float, float], most: int, seed: int) -> Trace:
    """Poisson arrivals, one a second; log-normal lengths as (median, sigma)."""
    random = np.random.default_rng(seed)

    def draw(median: float, sigma: float, limit: int) -> np.ndarray:
        return np.clip(np.rint(random.lognormal(np.log(median), sigma, count)), 1, limit).astype(np.int64)

    prompts, outputs = draw(*prompt, most), draw(*output, most)
    return Trace(np.cumsum(random.exponential(1.0, count)), prompts, outputs)


def page_walk(made: Scheduler, steps: int, seed: int, prefix: object | None = None) -> tuple[int, list[str]]:
    """Random arrivals, cancellations and completions of either lane, in any order; every page counted after each step.

    Returns (requests, what was wrong with the books: nothing, if nothing was).
    """
    random = np.random.default_rng(seed)
    total = 60
    state = State(total, 4, COST, Limits(max_seqs=16), lanes=made.lanes, prefix=prefix)  # type: ignore[arg-type]
    flights: dict[str, Batch] = {}
    wrong: list[str] = []
    now, count = 0.0, 0
    for step in range(steps):
        now += 0.01
        choice = random.random()
        if choice < 0.25 and len(state.waiting) < 20:
            prompt = int(random.integers(1, 60))
            keys = [int(random.integers(0, 2)), *range(count * 100, count * 100 + 20)][: prompt // 4]
            state.submit(Job(count, now, prompt, int(random.integers(1, 30)), keys))
            count += 1
        elif choice < 0.28:
            alive = [job for job in (*state.holders, *state.waiting) if not state.runs(job)]
            if alive:
                state.finish(alive[int(random.integers(len(alive)))], "cancelled", now)
        elif flights:
            lane = sorted(flights)[int(random.integers(len(flights)))]
            state.complete(lane, flights.pop(lane), now)
        while state.idle and state.busy:
            state.look(now)
            plan = made.decide(state)
            if not plan:
                break
            state.begin(plan)
            flights.update(plan.lanes)
        state.gaps.clear()
        held = sum(job.pages - len(job.shared) for job in state.holders)
        if held != state.held_pages or held + state.cached_pages + state.unused_pages != total or held < 0:
            wrong.append(f"step {step}: {held} held, {state.cached_pages} cached, {state.unused_pages} unused")
        reading = {chunk.job.id for batch in flights.values() for chunk in batch.chunks}
        answering = {job.id for job in state.decoding} if DECODE in flights and PREFILL in flights else set()
        if reading & answering:
            wrong.append(f"step {step}: requests {reading & answering} in both lanes")
    return count, wrong


def quantiles(times: Sequence[float]) -> tuple[float, float]:
    """(median, 99th percentile)."""
    return float(np.median(times)), float(np.quantile(times, 0.99))
