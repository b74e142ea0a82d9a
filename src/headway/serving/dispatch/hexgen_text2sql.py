"""`hexgen-text2sql`: calls of workflows with a deadline, on unequal machines: where each runs, and who is next there.

HEXGEN-TEXT2SQL (arXiv 2505.05286). A call goes to the instance with the highest

    alpha * t_fastest / t_e - (1 - alpha) * load_e / mean load        (t_e: seconds of such a call alone there)

load: predicted seconds of the calls that an instance holds, taken off as they leave. Each instance admits the call with
the least slack. Decided here: loads are over their mean instead of a reference instance's, so that no instance is
special and an idle one divides by nothing; ties go to the faster one, then the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal

from pydantic import Field, model_validator

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.system import Context, Costs, Policy, Settings, Verdict, no
from headway.core.target import Target
from headway.serving.dispatch.base import Call, Dispatcher, FleetView, alive
from headway.serving.dispatch.stage_times import StageTimes
from headway.serving.job import Job
from headway.serving.schedulers.base import never_fits

SYSTEM = Card(
    slug="hexgen-text2sql",
    title="HEXGEN-TEXT2SQL",
    paper="HEXGEN-TEXT2SQL: Optimizing LLM Inference Request Scheduling for Agentic Text-to-SQL Workflow, 2025 "
    "(arXiv 2505.05286)",
    kind="policy",
    slot="dispatch",
    summary="calls of workflows over unequal machines: by predicted seconds, then by urgency",
    claim="the deadline that 95 % of the queries meet up to 1.67x lower (mean 1.41x) than round-robin and first come "
    "first served, throughput up to 1.75x",
)

LATE = 1e9
"""Added to the slack of a hopeless call, in seconds: behind all others, in their order among themselves."""


class HexgenSettings(Settings):
    """Settings of both levels."""

    alpha: float | Literal["auto"] = Field(
        "auto", description="0 = the least loaded instance, 1 = the fastest; auto = tuned on the last window"
    )
    alpha_grid: tuple[float, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), min_length=1, description="what auto chooses from (the released code's)"
    )
    window_s: float = Field(100.0, gt=0, description="s; auto tunes on the queries that ended in it, and as often")
    retune_drop: float = Field(
        0.10, gt=0, lt=1, description="auto tunes at once when queries per second fall by this share"
    )
    slo_s: float | None = Field(None, gt=0, description="s; limit of a query; none: its expected stages alone")
    slo_scale: float = Field(1.0, gt=0, description="times what the expected stages take alone, without slo_s")
    late_last: bool = Field(False, description="calls that cannot be in time any more wait for all that can")
    prefix_weight: float = Field(
        0.0, ge=0, description="score of an instance that has read the call's template, for a prompt that is all shared"
    )
    output_estimate: Literal["stage-mean"] = Field("stage-mean", description="how answers are predicted")

    @model_validator(mode="after")
    def _check(self) -> HexgenSettings:
        for alpha in (*self.alpha_grid, *(() if self.alpha == "auto" else (self.alpha,))):
            if not 0.0 <= alpha <= 1.0:
                raise ValueError(f"alpha={alpha}: give 0 (the least loaded instance) to 1 (the fastest)")
        return self


def check_alpha(alpha: float) -> float:
    """Raises `BadInput` outside [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise BadInput(f"alpha={alpha}", "give 0 (the least loaded instance) to 1 (the fastest)")
    return alpha


@dataclass(frozen=True)
class Urgency:
    """The order of an instance's queue: the slack of a call, in seconds; the least is served first (`State.order`)."""

    times: StageTimes
    kind: str
    """Of the instance."""
    late_last: bool = False

    def __call__(self, job: Job, now: float) -> float:
        if job.deadline is None:
            return inf
        slack = job.deadline - now - self.times.of(self.kind, job.stage, job.left)
        return LATE + slack if self.late_last and slack < 0 else slack


class Hexgen(Dispatcher):
    """By predicted seconds. `alpha`: a number, or what gives it at each moment (seconds -> alpha)."""

    def __init__(self, times: StageTimes, alpha: float | Callable[[float], float], prefix_weight: float = 0.0) -> None:
        self.times, self.prefix_weight = times, prefix_weight
        self._alpha = alpha if callable(alpha) else check_alpha(alpha)
        self._held: dict[int, dict[int, float]] = {}
        self._read: dict[int, set[str]] = {}

    def load(self, instance: int) -> float:
        """Predicted seconds of the calls that it holds."""
        return sum(self._held.get(instance, {}).values())

    def alpha(self, now: float) -> float:
        return self._alpha(now) if callable(self._alpha) else self._alpha

    def route(self, call: Call, fleet: FleetView) -> int:
        job, living = call.job, alive(fleet)
        # One that is too large for every instance is refused by whichever it meets.
        able = [at for at in living if not never_fits(fleet.instances[at].state, job)] or living
        if len(able) == 1:
            chosen = able[0]
            seconds = {chosen: self.times.of(fleet.instances[chosen].kind, job.stage, job.prompt)}
        else:
            seconds = {at: self.times.of(fleet.instances[at].kind, job.stage, job.prompt) for at in able}
            loads = {at: self.load(at) for at in able}
            mean, fastest, alpha = sum(loads.values()) / len(able), min(seconds.values()), self.alpha(fleet.now)

            def score(at: int) -> tuple[float, float, int]:
                speed = fastest / seconds[at] if seconds[at] > 0 else 1.0
                busy = loads[at] / mean if mean > 0 else 0.0
                shared = call.prefix / job.prompt if call.template in self._read.get(at, ()) else 0.0
                return alpha * speed - (1.0 - alpha) * busy + self.prefix_weight * shared, -seconds[at], -at

            chosen = max(able, key=score)
        self._held.setdefault(chosen, {})[job.id] = seconds[chosen]
        if self.prefix_weight and call.prefix:
            self._read.setdefault(chosen, set()).add(call.template)
        return chosen

    def done(self, call: Call, instance: int, fleet: FleetView) -> None:
        del self._held[instance][call.job.id]
        if not fleet.instances[instance].alive:
            self._read.pop(instance, None)


class HexgenText2SQL(Policy[HexgenSettings]):
    """Two-level scheduling of workflows."""

    card = SYSTEM
    settings = HexgenSettings

    def applies(self, model: Model, target: Target) -> Verdict:
        return no("it routes calls over a fleet: headway plan tune-alpha PROBLEM.toml")

    def predict(self, model: Model, target: Target, settings: HexgenSettings) -> Costs:
        return Costs(size_bytes=float(model.size_bytes()))

    def plug(self, model: Model, settings: HexgenSettings, context: Context) -> Model:
        raise BadInput(
            f"{SYSTEM.slug} routes calls over a fleet, and one model is none", "see: headway plan tune-alpha"
        )

    def make(
        self, settings: HexgenSettings, times: StageTimes, alpha: Callable[[float], float] | None = None
    ) -> Hexgen:
        """The dispatcher; alpha: what gives it where the setting is `auto` (a tuner's)."""
        if settings.alpha == "auto":
            if alpha is None:
                raise BadInput("alpha=auto without a tuner", "give alpha as a number")
            return Hexgen(times, alpha, settings.prefix_weight)
        return Hexgen(times, settings.alpha, settings.prefix_weight)
