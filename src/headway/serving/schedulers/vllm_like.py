"""`vllm-like`: prompts first, whole, in iterations of their own; else one token for everyone (the original vLLM)."""

from __future__ import annotations

from pydantic import Field

from headway.core.card import Card
from headway.core.system import Settings
from headway.serving.schedulers.base import (
    ALL,
    MAIN,
    Batch,
    Plan,
    Scheduler,
    SchedulerSystem,
    View,
    admit_whole,
    make_room,
    refuse_oversized,
)

SYSTEM = Card(
    slug="vllm-like",
    title="Prefill-first scheduling",
    paper="plain reference of the slot; vLLM's first scheduler (Efficient Memory Management ..., SOSP 2023)",
    kind="policy",
    slot="scheduler",
    summary="whole prompts first, in iterations of their own; then one token for every request",
    claim="the shortest wait for the first token; streams stall while prompts are read",
    needs=("kv_cache",),
    reference=True,
)


class VllmLikeSettings(Settings):
    """Settings of prefill-first scheduling."""

    max_prefill_tokens: int = Field(
        8192, ge=1, description="tokens of prompts in one iteration; one prompt may exceed it"
    )


class PrefillFirst(Scheduler):
    """An iteration reads prompts, or decodes: never both."""

    steady = True

    def __init__(self, settings: VllmLikeSettings) -> None:
        self.settings = settings

    def decide(self, view: View) -> Plan:
        plan = Plan()
        refuse_oversized(view, plan)
        prompts = admit_whole(view, plan, view.free_pages, self.settings.max_prefill_tokens)
        if prompts:
            plan.lanes[MAIN] = Batch(prompts)
            return plan
        make_room(view, plan)
        if view.decoding.count and not plan.preempt and not plan.end:
            plan.lanes[MAIN] = Batch(decode=ALL)
        return plan


class VllmLike(SchedulerSystem[VllmLikeSettings]):
    """Prefill-first scheduling."""

    card = SYSTEM
    settings = VllmLikeSettings
    scheduler = PrefillFirst
