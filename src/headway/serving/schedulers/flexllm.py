"""`flexllm`: adapters are trained in the time that inference leaves under its limit, token by token.

FlexLLM (arXiv 2402.18789). Each iteration the base scheduler decides first, unchanged, as if nothing else ran; then as
many training tokens follow as the predicted time leaves under the limit less a margin: forward windows, or one or more
(layer, window) pieces of the backward. Training never displaces inference tokens, and yields its pages first: the base
sees them as free, and where its batch needs them, the sequence in work is dropped. Open in the card, and decided here:
without a limit, an iteration takes at most `most_tokens` rows (the released code's rule); without requests the limit
holds too, for whoever arrives meanwhile.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.system import Settings
from headway.hardware.iteration_time import Load
from headway.serving.job import WAITING
from headway.serving.schedulers.base import (
    MAIN,
    Batch,
    Plan,
    Scheduler,
    SchedulerSystem,
    View,
    load_of,
    scheduler_system,
)
from headway.serving.tuning import Tuning, joined
from headway.training.position import Forward, Piece, Position

SYSTEM = Card(
    slug="flexllm",
    title="FlexLLM",
    paper="FlexLLM: Token-Level Co-Serving of LLM Inference and Finetuning with SLO Guarantees, NSDI 2026 "
    "(arXiv 2402.18789)",
    kind="policy",
    slot="scheduler",
    summary="fine-tunes low-rank adapters in the time that inference leaves under its latency limit",
    claim="1.9-4.8x (heavy) to 2.5-6.8x (light load) the fine-tuning throughput of separate or time-shared resources",
    needs=("kv_cache",),
)


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class FlexLLMSettings(Settings):
    """Settings of co-serving, and of what is trained; the data comes with the job."""

    base: str = Field("sarathi-serve", description="scheduler that decides for inference, with its own defaults")
    slo_ms: float | None = Field(None, gt=0, description="ms of an iteration; default: the server's between tokens")
    margin: float = Field(0.05, ge=0, lt=1, description="share of the limit that is left unused")
    s_min: int = Field(4, ge=1, description="tokens below which a window is not worth its fixed cost")
    most_tokens: int = Field(512, ge=1, description="tokens of a training window at most (ours)")
    ft_kv_fraction: float = Field(0.2, gt=0, le=1, description="share of the pages that training may hold at most")
    rank: int = Field(16, ge=1, description="of the adapters")
    alpha: float = Field(16.0, gt=0, description="an adapter counts alpha / rank times")
    targets: tuple[Target, ...] = Field(("down_proj",), min_length=1, description="linears that have an adapter")
    lr: float = Field(1e-4, gt=0, lt=1, description="learning rate of AdamW (ours)")
    steps: int = Field(100, ge=1, description="optimiser steps")
    accum: int = Field(8, ge=1, description="sequences of a step")
    max_seq: int = Field(1024, ge=2, description="tokens of a sequence; longer examples are split")
    remat: Literal["light", "mlp", "none"] = Field(
        "light", description="what the way back computes again, to hold less memory"
    )


class CoServe(Scheduler):
    """Of `iterations` with requests, `skipped` had no time for the job that was there."""

    tunes = True

    def __init__(self, settings: FlexLLMSettings, base: Scheduler) -> None:
        """Raises `BadInput` for a base with lanes of its own: they leave no gaps to fill."""
        if base.lanes != (MAIN,):
            raise BadInput(f"flexllm on {settings.base}, which has {len(base.lanes)} lanes", "use a base with one")
        self.settings, self.base = settings, base
        self.iterations = self.skipped = 0
        self.too_long = False
        """The smallest window exceeds the limit even where no request is there."""

    def decide(self, view: View) -> Plan:
        job = view.tuning
        asked = bool(view.waiting) or view.seqs > 0
        plan = self.base.decide(_WithLent(view)) if asked else Plan()  # type: ignore[arg-type]
        if job is None or job.over:
            return Plan(lend=0) if view.lent else plan
        if view.lent and (plan.preempt or plan.end or needed_pages(view, plan) > view.free_pages):
            return Plan(lend=0)  # the base is asked again with what is then free
        if plan.preempt or plan.end or (not plan.lanes and plan.reject):
            return plan
        batch = plan.lanes.get(MAIN, Batch())
        spare = view.free_pages - needed_pages(view, plan) - int(view.limits.watermark * view.total_pages)
        lend = self._lend(view, job, spare)
        if lend is None:
            if view.lent:
                plan.lend = 0  # a longer sequence comes next, and has to wait
            return plan
        pieces = self.pieces(view, job, load_of(batch, view))
        if asked:
            self.iterations += 1
            self.skipped += not pieces
        self.too_long = not pieces and not asked
        if pieces:
            batch.extra = tuple(pieces)
            plan.lanes[MAIN] = batch
            plan.lend = lend if lend != view.lent else None
        return plan

    def _lend(self, view: View, job: Tuning, spare: int) -> int | None:
        """Pages that training holds from now on; None: there are not enough."""
        wanted = job.wanted_pages
        if wanted > int(self.settings.ft_kv_fraction * view.total_pages) or wanted - view.lent > max(spare, 0):
            return None
        return wanted

    @property
    def starved(self) -> str:
        """Why the job does not run; "" when it does."""
        if self.too_long:
            return "the smallest window of training takes longer than the limit of an iteration; raise slo_ms"
        if not self.iterations or self.skipped < self.iterations:
            return ""
        return f"training had no time in {self.iterations} iterations: inference alone takes up the limit; raise slo_ms"

    def limit(self, view: View) -> float:
        """Seconds that an iteration may take; inf: no limit."""
        tbt = self.settings.slo_ms / 1e3 if self.settings.slo_ms else view.slo.tbt_s
        return float("inf") if tbt is None else tbt * (1.0 - self.settings.margin)

    def pieces(self, view: View, job: Tuning, load: Load) -> list[Piece]:
        """As much of the job as fits beside a batch."""
        limit, position = self.limit(view), job.position
        most = self.settings.most_tokens
        if limit == float("inf"):
            most = max(most - load.tokens, 0)
        spent = view.cost(load) if load.tokens else 0.0
        found: list[Piece] = []
        # The next sequence asks for its own pages.
        while not position.finished and position.sequences == job.position.sequences:
            wanted = min(most, position.left)
            size = self._most(view, job, position, load, spent, limit, wanted)
            if size < min(self.settings.s_min, position.left):
                break
            piece = position.piece(size)
            spent += self._added(view, job, position, load, piece)
            if isinstance(piece, Forward) and job.cost.joined:
                load = joined(load, piece)
            found.append(piece)
            position = position.after(piece)
            if size < wanted or limit == float("inf"):
                break
        return found

    def _added(self, view: View, job: Tuning, position: Position, load: Load, piece: Piece) -> float:
        """Seconds that a piece adds."""
        before = view.cost(load) if load.tokens else 0.0
        return job.cost.seconds(view.cost, load, position, (piece,)) - before

    def _most(
        self, view: View, job: Tuning, position: Position, load: Load, spent: float, limit: float, most: int
    ) -> int:
        """The largest window that ends by the limit, by bisection: a piece's time rises with its tokens."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            fits = spent + self._added(view, job, position, load, position.piece(middle)) <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


class _WithLent:
    """The view with the pages that training holds as free: inference is decided as if it were alone."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)

    @property
    def free_pages(self) -> int:
        return self._view.free_pages + self._view.lent


def needed_pages(view: View, plan: Plan) -> int:
    """Pages that a plan takes: new prompts', and those that decodes grow into."""
    batch = plan.lanes.get(MAIN)
    if batch is None:
        return 0
    admitted = (chunk for chunk in batch.chunks if chunk.job.phase == WAITING)
    pages = sum(view.pages_for(chunk.job, max(chunk.reserve, chunk.job.target)) for chunk in admitted)
    if batch.decode == "all":
        return pages + view.decoding.pages_needed
    return pages + sum(view.decoding.needs_page(job) for job in batch.decode)  # type: ignore[arg-type]


class FlexLLM(SchedulerSystem[FlexLLMSettings]):
    """Token-level co-serving."""

    card = SYSTEM
    settings = FlexLLMSettings

    def make(self, settings: FlexLLMSettings) -> CoServe:
        """Raises `BadInput` for a base that is no scheduler."""
        if settings.base == SYSTEM.slug:
            raise BadInput("flexllm on itself", "name another base, e.g. sarathi-serve")
        base = scheduler_system(settings.base)
        return CoServe(settings, base.make(base.settings()))
