"""Load runs to look at: a trace at several rates, on the real engine and in the simulator, as records of evidence.

The engine is the one that `headway serve` makes. The simulator runs the same scheduler over batches that were measured
apart from those that the scheduler believes: a simulator that runs on what the scheduler believes proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from headway.core.cache import StepCache
from headway.core.decode import decode
from headway.core.evidence import MOMENTS, LoadRun, Timeline
from headway.core.jsontext import plain
from headway.core.progress import Progress
from headway.hardware.iteration_time import IterationTime, Load
from headway.hardware.machine import read_machine
from headway.llm.language_model import LanguageModel
from headway.llm.native import PAGE_TOKENS, NativeRuntime
from headway.serving import prepared
from headway.serving.capacity import attainment
from headway.serving.engine import Engine
from headway.serving.measuring import iteration_time
from headway.serving.messages import Setup
from headway.serving.outcome import Outcome
from headway.serving.replay import replay
from headway.serving.request import Request
from headway.serving.schedulers.base import SLO, Limits, of_one_lane, scheduler_system
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.state import State
from headway.serving.trace import Trace

LEVELS = np.linspace(0.0, 1.0, 101)
SHARES = (0.3, 0.6, 0.9)
"""Of the saturated rate: the rates where nobody names any."""
APART = 1
"""Seed of the batches that the simulator's time is fitted from; the scheduler's has 0."""


@dataclass
class Watch:
    """Takes down how full an engine is."""

    rows: list[tuple[float, float, float, float]] = field(default_factory=list)

    def __call__(self, now: float, state: State) -> None:
        used = 1.0 - state.free_pages / state.total_pages
        self.rows.append((now, len(state.waiting), state.seqs, used))

    def timeline(self, most: int = MOMENTS) -> Timeline:
        """The largest values of at most so many intervals of equal length, each at the time of its last row."""
        rows = np.array(self.rows, float).reshape(-1, 4)
        if len(rows) > most:
            interval = np.minimum(rows[:, 0] / max(rows[-1, 0], 1e-9) * most, most - 1).astype(np.int64)
            starts = np.flatnonzero(np.diff(interval, prepend=-1))
            rows = np.maximum.reduceat(rows, starts, axis=0)
        at, waiting, running, used = (tuple(column) for column in np.round(rows.T, 6).tolist())
        return Timeline(at, waiting, running, used)


def record(
    by: Literal["engine", "simulator"], outcome: Outcome, rate: float, pages: int, slo: SLO, watch: Watch
) -> LoadRun:
    """What is kept of a run."""
    figures = outcome.summary()
    got = outcome.ttft[~np.isnan(outcome.ttft)]
    return LoadRun(
        by,
        rate,
        requests=figures["requests"],
        finished=figures["finished"],
        rejected=figures["rejected"],
        preemptions=figures["preemptions"],
        pages=pages,
        seconds=figures["seconds"],
        output_tok_s=figures["output_tok_s"],
        total_tok_s=figures["total_tok_s"],
        attainment=attainment(outcome, slo) if slo.limited else None,
        ttft_s=tuple(np.quantile(got, LEVELS).tolist()) if len(got) else (),
        tbt_s=tuple(outcome.gap_quantile(q) for q in LEVELS) if len(outcome.gaps[0]) else (),
        timeline=watch.timeline(),
    )


def check_scheduler(slug: str, settings: Mapping[str, Any]) -> None:
    """Raises `BadInput` for one that the simulator's device of one lane cannot run."""
    system = scheduler_system(slug)
    of_one_lane(system.make(system.settings(**settings)), slug)


@dataclass
class LoadBench:
    """A model with a scheduler, a load, limits. Raises `BadInput` at once for what cannot be run."""

    model: LanguageModel
    wanted: Setup
    trace: Trace
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        check_scheduler(*self.scheduler)
        self.runtime: NativeRuntime = prepared.native(self.model)

    @property
    def slo(self) -> SLO:
        return SLO(self.wanted.ttft_s, self.wanted.tbt_s)

    @property
    def scheduler(self) -> tuple[str, dict[str, Any]]:
        """The system, and its settings."""
        slug, settings = self.model.scheduler or (prepared.DEFAULT_SCHEDULER, {})
        return slug, dict(settings)

    @cached_property
    def costs(self) -> tuple[IterationTime, IterationTime]:
        """What the scheduler believes, and what the simulator's batches take."""
        threads = self.wanted.threads
        believed = iteration_time(self.model, self.runtime, threads, self.progress)
        return believed, iteration_time(self.model, self.runtime, threads, self.progress, APART)

    def disagreement(self) -> float:
        """Median relative difference of the two measured times: what no simulator here can be surer than."""
        believed, real = self.costs
        loads = [Load(n, 0.0, n, n * 256, n, n) for n in (1, 4, 16)] + [
            Load(n, n * n / 2, 0, 0, 1, 1) for n in (64, 256)
        ]
        return float(np.median([abs(real(load) / believed(load) - 1.0) for load in loads]))

    @cached_property
    def pages(self) -> int:
        return prepared.pages(self.runtime, self.wanted)

    def rates(self) -> list[float]:
        """Requests per second at `SHARES` of the rate at which the simulator works off a queue; two digits of them."""
        at_once = Trace(np.zeros(len(self.trace)), self.trace.prompt, self.trace.output)
        saturated = len(self.trace) / max(self._simulate(at_once, self.pages, Watch()).end_s, 1e-9)
        return [float(f"{share * saturated:.1e}") for share in SHARES]

    def run(self, rates: Sequence[float]) -> list[LoadRun]:
        """The engine's record and the simulator's, rate by rate. Each run of the engine is kept in the step cache."""
        _ = self.costs  # measured before the first run
        found = []
        for rate in rates:
            trace = self.trace.at_rate(rate)
            real = self._engine(rate, trace)
            with self.progress.task(f"simulating {rate:g}/s"):
                watch = Watch()
                guess = self._simulate(trace, real.pages, watch)
            found += [real, record("simulator", guess, rate, real.pages, self.slo, watch)]
        return found

    def _simulate(self, trace: Trace, pages: int, watch: Callable[[float, State], object]) -> Outcome:
        believed, real = self.costs
        context = self.model.architecture.context
        setting = Setting(pages, PAGE_TOKENS, Limits(self.wanted.max_seqs, context), self.slo, self.wanted.prefix)
        scheduler = prepared.scheduler(self.model, self.wanted.batch_tokens)
        return simulate(trace, scheduler, OneLane(real), setting, cost=believed, watch=watch)

    def _engine(self, rate: float, trace: Trace) -> LoadRun:
        cache, key = StepCache(), self._key(trace)
        if cache.holds(key):
            self.progress.note(f"{rate:g} requests/s were measured before; another --seed or load measures anew")

        def measure() -> LoadRun:
            self.progress.note(
                f"{len(trace)} requests at {rate:g}/s: {trace.arrival[-1]:.0f} s of arrivals, then what is left"
            )
            engine = prepared.engine(self.model, self.wanted, self.progress)
            try:
                warm(engine)
                watch = Watch()
                run = replay(
                    engine,
                    trace,
                    seed=self.wanted.seed,
                    progress=self.progress,
                    watch=lambda now, engine: watch(now, engine.state),
                )
            finally:
                engine.close()
            return record("engine", run.outcome, rate, engine.state.total_pages, self.slo, watch)

        return decode(LoadRun, cache.json(key, lambda: plain(measure())), "load run")

    def _key(self, trace: Trace) -> str:
        wanted = self.wanted
        return StepCache.key(
            "load run",
            self.model.fingerprint(),
            self.model.runtime_kind,
            read_machine().fingerprint,
            [wanted.threads, wanted.seed, wanted.kv_bytes, wanted.batch_tokens, wanted.max_seqs, wanted.prefix],
            [wanted.ttft_s, wanted.tbt_s],
            self.scheduler,
            [trace.arrival, trace.prompt, trace.output],
        )


def warm(engine: Engine) -> None:
    """One request, so that the first of a run finds the weights in memory."""
    engine.submit(Request([0], 2, ignore_end=True))
    while engine.busy:
        engine.step()
