"""`nexus`: prompts and answers on two lanes; the split is computed from a cost model before each batch.

Nexus (2025). While pages are scarce the answers come first (they free pages), else the prompts: the one is made as fast
as a slack on the other allows. Prompts are read shortest first with ageing, answers go on as they came. Open in the
card, and decided here:
- `beta="auto"` holds 0.9 of the limit on the time between tokens (1.3 times the fastest decode where none is set).
- `alpha` is 4: a prompt's time grows as 1 / share, so a slack near 1 would leave the favoured lane nothing.
- hysteresis: a move of `delta` or less is not made unless the mode changed (a quantum as large as `delta` would always
  pass "at least"); and none at all while a lane is idle, whose share is lent anyway.
- `gamma="auto"` is a tenth of the measured prefill rate. Age never reorders two waiting prompts, so the order is by
  remaining + gamma * arrival, fixed while they wait; preempted requests come first.
- the model's speeds are those of `LaneTime`, fitted where a machine was measured by share, else derived from the
  iteration time (decodes saturate at half of the machine).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from pydantic import Field, model_validator

from headway.core.card import Card
from headway.core.system import Settings
from headway.hardware.iteration_time import IterationTime, Load
from headway.hardware.lane_time import LaneTime, Speed
from headway.serving.job import Job
from headway.serving.schedulers.base import Plan, SchedulerSystem, View, load_of
from headway.serving.schedulers.two_lanes import DECODE, PREFILL, TwoLanes

SYSTEM = Card(
    slug="nexus",
    title="Nexus",
    paper="Nexus: Proactive Intra-GPU Disaggregation of Prefill and Decode in LLM Serving, 2025 (arXiv 2507.06608)",
    kind="policy",
    slot="scheduler",
    summary="prefill and decode at the same time, the split computed from a cost model before each batch",
    claim="up to 2.2x throughput, 20x lower TTFT, 2.5x lower time between tokens than vLLM (L20)",
    needs=("kv_cache",),
)

FALLBACK_SLACK = 1.3
GAIN = 0.01
"""An objective must fall by more than this share for a move that nothing demands."""
HEADROOM = 0.9
"""Of the limit on the time between tokens that a prediction may use: the model is some percent off."""
AGEING = 0.1
"""`gamma="auto"`, in prefill rates."""


class NexusSettings(Settings):
    """Settings of Nexus."""

    kv_switch: float = Field(0.7, ge=0, le=1, description="share of pages in use above which answers come first")
    alpha: float = Field(4.0, ge=1, description="slack on prefill while answers come first, over the whole machine's")
    beta: float | Literal["auto"] = Field(
        "auto", description="slack on decode while prompts come first; auto = the limit on the time between tokens"
    )
    delta: float = Field(0.1, ge=0, lt=1, description="share; smaller moves of the split are not made")
    quantum: float = Field(0.1, gt=0, le=0.5, description="share; one step of the search")
    gamma: float | Literal["auto"] = Field(
        "auto", description="tokens a prompt's place improves by for each second of waiting; auto = a tenth of the rate"
    )
    fcfs: bool = Field(False, description="read prompts as they came (ablation)")
    max_prefill_tokens: int = Field(2048, ge=1, description="prompt tokens of one prefill batch")
    max_decode_batch: int = Field(256, ge=1, description="requests of one decode iteration")

    @model_validator(mode="after")
    def _check(self) -> NexusSettings:
        if self.beta != "auto" and self.beta < 1:
            raise ValueError("beta must be at least 1")
        if self.gamma != "auto" and self.gamma < 0:
            raise ValueError("gamma must be at least 0")
        return self


class Objective:
    """What the split is judged by. Times of both phases at prefill's share r, and which of them is held to a limit."""

    def __init__(self, times: Callable[[float], tuple[float, float]], decode_first: bool, limit: float) -> None:
        """limit: seconds for the phase that does not come first."""
        self._times, self._decode_first, self._limit = times, decode_first, limit
        self._known: dict[float, tuple[float, bool]] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def __call__(self, share: float) -> tuple[float, bool]:
        """(seconds of the favoured phase, whether the other one holds its limit)."""
        if share not in self._known:
            prefill, decode = self._times(share)
            favoured, other = (decode, prefill) if self._decode_first else (prefill, decode)
            self._known[share] = favoured, other <= self._limit
        return self._known[share]


def greedy(objective: Objective, start: float, quantum: float, decode_first: bool) -> float:
    """Prefill's share: from `start`, first until the limit holds, else on while the favoured phase gains by it.

    A limit that no split holds leaves the held phase all but one quantum.
    """
    steps = round(1.0 / quantum)
    at = min(max(round(start * steps), 1), steps - 1)
    favour = -1 if decode_first else 1  # the way that serves the phase that comes first
    value, holds = objective(at / steps)
    if not holds:
        while not holds and 1 <= at - favour <= steps - 1:
            at -= favour
            value, holds = objective(at / steps)
        return at / steps
    while 1 <= at + favour <= steps - 1:
        further, holds = objective((at + favour) / steps)
        if not holds or further > value * (1.0 - GAIN):
            break
        at, value = at + favour, further
    return at / steps


class Nexus(TwoLanes):
    """`share` is prefill's while both lanes have work."""

    def __init__(self, settings: NexusSettings, model: LaneTime | None = None) -> None:
        super().__init__(settings.max_prefill_tokens, settings.max_decode_batch)
        self.settings = settings
        self.share = 0.5
        self.switches = 0
        self._model, self._given = model, model is not None
        self._decode_first = False
        self._running: dict[str, Load] = {}
        self._sent: float | None = None

    def order(self, view: View) -> Iterable[Job]:
        waiting = view.waiting
        if self.settings.fcfs:
            return waiting
        gamma = self.settings.gamma
        if gamma == "auto":
            gamma = AGEING * _prefill_rate(view.cost)
        return sorted(
            waiting, key=lambda job: (not job.preemptions, job.left + gamma * job.arrival, job.arrival, job.id)
        )

    def split(self, view: View, plan: Plan) -> dict[str, float] | None:
        running = self._running
        for lane in view.idle:
            running.pop(lane, None)
        for lane, batch in plan.lanes.items():
            running[lane] = load_of(batch, view)
        if len(running) == 2:
            self._choose(view, running[PREFILL], running[DECODE])
        if self._sent == self.share:
            return None
        self._sent = self.share
        return {PREFILL: self.share, DECODE: 1.0 - self.share}

    def _choose(self, view: View, prefill: Load, decode: Load) -> None:
        s = self.settings
        decode_first = 1.0 - view.free_pages / view.total_pages > s.kv_switch
        model = self.model(view.cost)
        if decode_first:
            limit = s.alpha * model.alone(prefill, 1.0)
        elif s.beta == "auto" and view.slo.tbt_s is not None:
            limit = HEADROOM * view.slo.tbt_s
        else:
            limit = (FALLBACK_SLACK if s.beta == "auto" else s.beta) * model.alone(decode, 1.0)
        first, second = model.operators(prefill), model.operators(decode)
        objective = Objective(lambda r: model.shared(first, second, r), decode_first, limit)
        share = greedy(objective, self.share, s.quantum, decode_first)
        moved = abs(share - self.share)
        if moved > 1e-9 and (moved > s.delta + 1e-9 or decode_first != self._decode_first):
            self.share = share
            self.switches += 1
        self._decode_first = decode_first

    def model(self, cost: IterationTime) -> LaneTime:
        """Times by share: those given, or derived from the whole machine's."""
        if not self._given and (self._model is None or self._model.cost is not cost):
            self._model = LaneTime(cost, memory=Speed(0.5, 0.2))
        assert self._model is not None
        return self._model


def _prefill_rate(cost: IterationTime) -> float:
    """Tokens per second of a long chunk."""
    return 1024 / max(cost(Load(1024, 1024 * 512.0, 0, 0, 1, 1)), 1e-9)


class NexusSystem(SchedulerSystem[NexusSettings]):
    """Proactive intra-device disaggregation."""

    card = SYSTEM
    settings = NexusSettings
    scheduler = Nexus
