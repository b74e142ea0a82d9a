"""`sarathi-serve`: prompts in chunks beside all running decodes, under a token budget for each iteration.

Sarathi-Serve (OSDI 2024). Decodes come first, then prompts that are partly read, then new ones, until the budget is
spent: no stream waits for a long prompt. The card leaves open, and decided here: the watermark of free pages at
admission is 1 % (`Limits.watermark`), as in vLLM; `token_budget="auto"` takes the largest budget whose iteration, with
the decodes at hand, is predicted to hold the limit on the time between tokens; without a limit, the fewest tokens that
read prompts at nearly the machine's best rate, as the paper's profiling does.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from headway.core.card import Card
from headway.core.system import Settings
from headway.hardware.iteration_time import IterationTime, Load
from headway.serving.job import Job
from headway.serving.schedulers.base import (
    ALL,
    MAIN,
    Batch,
    Chunk,
    Plan,
    Scheduler,
    SchedulerSystem,
    View,
    load_of,
    make_room,
    refuse_oversized,
)

SYSTEM = Card(
    slug="sarathi-serve",
    title="Sarathi-Serve",
    paper="Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, OSDI 2024 (arXiv 2403.02310)",
    kind="policy",
    slot="scheduler",
    summary="chunked prefills beside all decodes, under a token budget per iteration",
    claim="up to 2.6x (Mistral-7B) to 6.9x (Falcon-180B) the capacity of vLLM under a limit on the time between tokens",
    needs=("kv_cache",),
)

SATURATING = (64, 128, 192, 256, 384, 512)
"""Tokens that are tried for a budget where no limit on the time between tokens is set."""
SATURATED = 0.9
"""Share of the best of their rates that is enough: more tokens would only make every decode wait longer."""
LARGEST_BUDGET = 8192


class SarathiSettings(Settings):
    """Settings of Sarathi-Serve."""

    token_budget: int | Literal["auto"] = Field(
        "auto",
        description="tokens of one iteration; auto = the most that holds the limit on the time between tokens; without "
        "one, the fewest that read prompts at nearly the machine's best rate",
    )
    tbt_slo_ms: float | None = Field(None, gt=0, description="ms between two tokens; default: the server's own limit")
    dynamic_chunks: bool = Field(False, description="smaller chunks later in long prompts, whose attention costs more")
    chunk_low: int = Field(128, ge=32, description="tokens; smallest of the dynamic chunks")
    chunk_high: int = Field(1024, ge=32, description="tokens; largest of the dynamic chunks")
    chunk_stages: int = Field(16, ge=1, description="steps from the largest to the smallest")
    chunk_max_tokens: int = Field(16384, ge=1, description="prompt tokens over which the steps are spread")

    @model_validator(mode="after")
    def _check(self) -> SarathiSettings:
        if self.token_budget != "auto" and self.token_budget < 1:
            raise ValueError("token_budget must be at least 1")
        if self.chunk_low > self.chunk_high:
            raise ValueError("chunk_low must not exceed chunk_high")
        return self


class Sarathi(Scheduler):
    """Passes of one iteration: decodes, partly read prompts, new prompts."""

    steady = True

    def __init__(self, settings: SarathiSettings) -> None:
        self.settings = settings

    def decide(self, view: View) -> Plan:
        plan = Plan()
        free = make_room(view, plan)
        if plan.preempt or plan.end:
            return plan  # the view is asked again without them
        batch = Batch(decode=ALL if view.decoding.count else ())
        if view.waiting or view.prefilling:
            self._read_prompts(view, plan, batch, free)
        if batch:
            plan.lanes[MAIN] = batch
        return plan

    def _read_prompts(self, view: View, plan: Plan, batch: Batch, free: int) -> None:
        budget = self.budget(view)
        left = budget - view.decoding.count
        # Whoever is admitted will decode: more of them than the budget would exceed it in every iteration.
        places = min(view.limits.max_seqs, budget)
        for job in view.prefilling:
            if left < 1:
                break
            tokens = min(job.left, left, self.chunk(job))
            batch.chunks.append(Chunk(job, tokens))
            left -= tokens
        refuse_oversized(view, plan)
        watermark = int(view.limits.watermark * view.total_pages)
        seqs = view.seqs
        for at, job in enumerate(view.waiting):
            if at < len(plan.reject):
                continue
            pages = view.pages_for(job, job.target)
            # An empty engine takes anything that fits at all: a watermark must not lock a large prompt out.
            spare = watermark if seqs else 0
            if left < 1 or seqs >= places or pages + spare > free:
                break
            tokens = min(job.left, left, self.chunk(job))
            batch.chunks.append(Chunk(job, tokens))
            left -= tokens
            free -= pages
            seqs += 1

    def budget(self, view: View) -> int:
        """Tokens of the next iteration."""
        wanted = self.settings.token_budget
        if wanted != "auto":
            return wanted
        tbt = self.settings.tbt_slo_ms / 1e3 if self.settings.tbt_slo_ms else view.slo.tbt_s or view.slo.tpot_s
        if tbt is None:
            return saturating(view.cost)
        decodes = Batch(decode=ALL if view.decoding.count else ())
        base = load_of(decodes, view)
        context = max((job.done for job in view.prefilling), default=0)

        def holds(chunk: int) -> bool:
            load = base._replace(
                tokens=base.tokens + chunk,
                chunk_work=chunk * (context + chunk / 2),
                sequences=base.sequences + 1,
                sampled=base.sampled + 1,
            )
            return view.cost(load) <= tbt

        # A chunk of 1 always: a limit below the decodes' own time must not starve prompts.
        low, high = 1, LARGEST_BUDGET
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if holds(middle) else (low, middle - 1)
        return base.tokens + low

    def chunk(self, job: Job) -> int:
        """The most that the next chunk of this prompt may take."""
        s = self.settings
        if not s.dynamic_chunks:
            return LARGEST_BUDGET
        stage = min(job.done // -(-s.chunk_max_tokens // s.chunk_stages), s.chunk_stages - 1)
        size = s.chunk_high - (s.chunk_high - s.chunk_low) * stage / max(s.chunk_stages - 1, 1)
        return max(32, round(size / 32) * 32)


def saturating(cost: IterationTime) -> int:
    """The fewest tokens of a prompt at which the machine's rate is nearly its best (the paper profiles the same)."""
    rates = [tokens / cost(Load(tokens, tokens**2 / 2.0, 0, 0, 1, 1)) for tokens in SATURATING]
    return next(tokens for tokens, rate in zip(SATURATING, rates, strict=True) if rate >= SATURATED * max(rates))


class SarathiServe(SchedulerSystem[SarathiSettings]):
    """Stall-free batching."""

    card = SYSTEM
    settings = SarathiSettings
    scheduler = Sarathi
