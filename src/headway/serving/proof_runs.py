"""What the proofs of schedulers share: a measured machine, engines over one model, and load runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from headway.core.errors import BadInput
from headway.core.proof import ProofContext
from headway.hardware.iteration_time import IterationTime, Load
from headway.kernels import cpu
from headway.llm.native import PAGE_TOKENS, NativeRuntime
from headway.serving.engine import Engine
from headway.serving.measuring import Measured, measure
from headway.serving.replay import Replay, replay
from headway.serving.schedulers.base import SLO, Limits, Scheduler
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import Trace

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel
    from headway.serving.outcome import Outcome

MODEL = "smollm2-135m"
PAGES = 600
SEQS = 48


@dataclass
class Stand:
    """One model on this machine, with two separately measured tables of how long its batches take.

    Schedulers believe `cost`; the simulator uses `device_cost`: a simulator that runs on what the scheduler believes
    proves nothing.
    """

    model: LanguageModel
    context: ProofContext
    pages: int = PAGES

    @classmethod
    def of(cls, context: ProofContext, slug: str) -> Stand:
        """Raises `BadInput` for a model that is no language model."""
        from headway.llm.language_model import LanguageModel

        model = context.load(context.model or MODEL)
        if not isinstance(model, LanguageModel):
            raise BadInput(f"{model.name} is no language model", f"prove {slug} on {MODEL} or an LLM of your own")
        return cls(model.with_runtime("native", context.threads or cpu.threads()), context)

    @property
    def runtime(self) -> NativeRuntime:
        runtime = self.model.runtime
        assert isinstance(runtime, NativeRuntime)
        return runtime

    @cached_property
    def measured(self) -> tuple[Measured, Measured]:
        count = 70 if self.context.quick else 130
        first = measure(self.runtime, count=count, seed=self.context.seed, progress=self.context.progress)
        second = measure(self.runtime, count=count, seed=self.context.seed + 1, progress=self.context.progress)
        return first, second

    @cached_property
    def cost(self) -> IterationTime:
        return self.measured[0].fit()

    @cached_property
    def device_cost(self) -> IterationTime:
        return self.measured[1].fit()

    def decode_iteration(self, batch: int, context: int) -> float:
        """Seconds of an iteration of decodes alone."""
        return self.cost(Load(batch, 0.0, batch, batch * context, batch, batch))

    def limits(self) -> Limits:
        return Limits(max_seqs=SEQS)

    def engine(self, scheduler: Scheduler, slo: SLO | None = None, *, prefix: bool = False, pages: int = 0) -> Engine:
        return Engine(
            self.model, scheduler, pages=pages or self.pages, cost=self.cost, limits=self.limits(), slo=slo,
            prefix=prefix,
        )  # fmt: skip

    def run(self, scheduler: Scheduler, trace: Trace, slo: SLO | None = None) -> Replay:
        """The trace on the real engine."""
        engine = self.engine(scheduler, slo)
        try:
            return replay(engine, trace, seed=self.context.seed, progress=self.context.progress)
        finally:
            engine.close()

    def simulated(self, scheduler: Scheduler, trace: Trace, slo: SLO | None = None) -> Outcome:
        """The trace in the simulator, over the second table."""
        setting = Setting(self.pages, PAGE_TOKENS, self.limits(), slo or SLO())
        return simulate(trace, scheduler, OneLane(self.device_cost), setting, cost=self.cost)

    def saturated_rate(self, scheduler: Scheduler, trace: Trace) -> float:
        """Requests per second when everything arrives at once, in the simulator."""
        at_once = Trace(np.zeros(len(trace)), trace.prompt, trace.output)
        return len(trace) / self.simulated(scheduler, at_once).end_s


def greedy_equal(model: LanguageModel, runs: Mapping[str, Replay], first: str) -> tuple[int, list[str]]:
    """How many requests all runs answered alike, and what differed (run, request) otherwise."""
    differ = []
    wanted = runs[first].tokens
    for name, run in runs.items():
        differ += [f"{name}: request {at}" for at, tokens in wanted.items() if run.tokens.get(at) != tokens]
    return len(wanted), differ
