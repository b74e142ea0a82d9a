"""`orca-like`: whole prompts beside decodes in one iteration, with pages reserved for the longest answer (Orca)."""

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
    refuse_oversized,
)

SYSTEM = Card(
    slug="orca-like",
    title="Iteration-level scheduling",
    paper="plain reference of the slot; Orca (OSDI 2022)",
    kind="policy",
    slot="scheduler",
    summary="whole prompts beside all decodes; pages reserved for the longest answer, so that nothing is preempted",
    claim="requests join and leave at every iteration; a long prompt stalls the streams it joins",
    needs=("kv_cache",),
    reference=True,
)


class OrcaLikeSettings(Settings):
    """Settings of iteration-level scheduling."""

    max_seqs: int = Field(16, ge=1, description="requests at the same time (Orca's batch size)")
    max_prefill_tokens: int = Field(
        8192, ge=1, description="tokens of prompts in one iteration; one prompt may exceed it"
    )


class IterationLevel(Scheduler):
    """Everyone runs in every iteration."""

    def __init__(self, settings: OrcaLikeSettings) -> None:
        self.settings = settings

    def decide(self, view: View) -> Plan:
        plan = Plan()
        refuse_oversized(view, plan, whole=True)
        prompts = admit_whole(
            view, plan, view.free_pages, self.settings.max_prefill_tokens, self.settings.max_seqs, reserve_all=True
        )
        if prompts or view.decoding.count:
            plan.lanes[MAIN] = Batch(prompts, ALL if view.decoding.count else ())
        return plan


class OrcaLike(SchedulerSystem[OrcaLikeSettings]):
    """Iteration-level scheduling."""

    card = SYSTEM
    settings = OrcaLikeSettings
    scheduler = IterationLevel
