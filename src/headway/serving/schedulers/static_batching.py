"""`static-batching`: a batch of requests runs until the last of them is done (FasterTransformer)."""

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
    slug="static-batching",
    title="Request-level batching",
    paper="plain reference of the slot; NVIDIA FasterTransformer",
    kind="policy",
    slot="scheduler",
    summary="a batch of requests runs until the last of them is done; then the next batch",
    claim="the simplest batching; requests wait for others' answers",
    needs=("kv_cache",),
    reference=True,
)


class StaticSettings(Settings):
    """Settings of request-level batching."""

    batch_size: int = Field(8, ge=1, description="requests of a batch")


class RequestLevel(Scheduler):
    """Nobody joins a batch that runs."""

    def __init__(self, settings: StaticSettings) -> None:
        self.settings = settings

    def decide(self, view: View) -> Plan:
        plan = Plan()
        refuse_oversized(view, plan, whole=True)
        if view.decoding.count:
            plan.lanes[MAIN] = Batch(decode=ALL)
            return plan
        prompts = admit_whole(view, plan, view.free_pages, 1 << 60, self.settings.batch_size, reserve_all=True)
        if prompts:
            plan.lanes[MAIN] = Batch(prompts)
        return plan


class StaticBatching(SchedulerSystem[StaticSettings]):
    """Request-level batching."""

    card = SYSTEM
    settings = StaticSettings
    scheduler = RequestLevel
