"""An instance on this machine: a model with a number of threads, its measured iteration time, real load runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.progress import Progress
from headway.hardware.iteration_time import IterationTime
from headway.llm.language_model import LanguageModel
from headway.llm.native import PAGE_TOKENS, NativeRuntime
from headway.serving.engine import Engine
from headway.serving.fleet import Machine
from headway.serving.measuring import iteration_time
from headway.serving.replay import Replay, replay
from headway.serving.schedulers.base import SLO, Limits, Scheduler
from headway.serving.simulator import OneLane, Setting
from headway.serving.trace import Trace


@dataclass(frozen=True)
class Here:
    """`pages` of `PAGE_TOKENS` tokens each. `cost`: what one forward pass takes here, measured."""

    model: LanguageModel
    pages: int
    cost: IterationTime
    limits: Limits

    @classmethod
    def measured(
        cls, model: Model, threads: int, *, kv_bytes: float, max_seqs: int, progress: Progress, use: str
    ) -> Here:
        """Measure a model, or read what was measured of it before. `use`: what it is wanted for, in errors.

        Raises `BadInput` for a model that is no language model, and where no page fits in `kv_bytes`.
        """
        if not isinstance(model, LanguageModel):
            raise BadInput(f"{model.name} is no language model", f"{use} takes one")
        made = model.with_runtime(model.runtime_kind, threads)
        runtime = made.runtime
        if not isinstance(runtime, NativeRuntime):
            raise BadInput(f"{model.name} runs on {model.runtime_kind}", f"{use} takes the native runtime")
        pages = int(kv_bytes // runtime.page_bytes)
        if pages < 1:
            raise BadInput(
                f"{kv_bytes:.0f} bytes hold no page of {PAGE_TOKENS} tokens",
                f"give at least {runtime.page_bytes} bytes",
            )
        cost = iteration_time(made, runtime, threads, progress)
        longest = min(made.architecture.context, pages * PAGE_TOKENS)
        return cls(made, pages, cost, Limits(max_seqs=max_seqs, max_len=longest))

    def machine(self, kind: str, scheduler: Callable[[], Scheduler], slo: SLO) -> Machine:
        """The same instance in the simulator."""
        return Machine(kind, scheduler, OneLane(self.cost), Setting(self.pages, PAGE_TOKENS, self.limits, slo))

    def run(
        self, scheduler: Scheduler, trace: Trace, slo: SLO, *, seed: int = 0, progress: Progress | None = None
    ) -> Replay:
        """The trace on the real engine, in real time."""
        engine = Engine(
            self.model, scheduler, pages=self.pages, cost=self.cost, limits=self.limits, slo=slo, prefix=False
        )
        try:
            return replay(engine, trace, seed=seed, progress=progress)
        finally:
            engine.close()
