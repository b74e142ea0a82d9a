"""`tune-alpha`: how far calls of workflows should go to fast instances rather than idle ones, from a trace of queries.

The trace is replayed in the simulator under each alpha (HEXGEN-TEXT2SQL, arXiv 2505.05286).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.system import PlanContext, Planner, Problem
from headway.hardware.iteration_time import IterationTime
from headway.serving import chess
from headway.serving.alpha_tuning import WorkflowFleet, tune
from headway.serving.dispatch.base import RoundRobin
from headway.serving.dispatch.deadlines import StageDeadlines
from headway.serving.dispatch.hexgen_text2sql import HexgenSettings
from headway.serving.dispatch.stage_times import StageTimes, shapes
from headway.serving.fleet import Machine
from headway.serving.schedulers.base import Limits, of_one_lane, scheduler_system
from headway.serving.simulator import OneLane, Setting
from headway.serving.workflow import Query, latencies, lengths, quantile, read_queries

SYSTEM = Card(
    slug="tune-alpha",
    title="Alpha of a workflow dispatcher",
    paper="the tuner of HEXGEN-TEXT2SQL, 2025 (arXiv 2505.05286)",
    kind="planner",
    slot="placement",
    summary="alpha of hexgen-text2sql for a fleet, from the last window of queries",
    claim="within 5 % of the best alpha in hindsight",
    reference=True,
)

PAGE_TOKENS = 256


class InstanceTable(Problem):
    """`[[instance]]`: a machine by name, or by what prompts and answers take there."""

    kind: str = Field(min_length=1, description="instances of one kind are alike; e.g. A100")
    count: int = Field(1, ge=1, le=64, description="how many")
    prefill_tokens_s: float | None = Field(None, gt=0, description="tokens of prompts per second")
    decode_s: float | None = Field(None, gt=0, description="seconds per token of an answer alone")
    crowding: float = Field(chess.CROWDING, ge=0, le=1, description="what each further call adds to that, as a share")
    max_seqs: int = Field(chess.CONCURRENT, ge=1, le=1024, description="calls that run at once")
    kv_tokens: int = Field(350_000, ge=PAGE_TOKENS, description="tokens of keys and values that it holds")

    @model_validator(mode="after")
    def _check(self) -> InstanceTable:
        if (self.prefill_tokens_s is None) != (self.decode_s is None):
            raise ValueError("give prefill_tokens_s and decode_s together")
        if self.decode_s is None and self.kind not in chess.SECONDS:
            raise ValueError(f"give prefill_tokens_s and decode_s, or a kind of: {', '.join(chess.SECONDS)}")
        return self

    def cost(self) -> IterationTime:
        if self.decode_s is None or self.prefill_tokens_s is None:
            return chess.iteration_time(self.kind)
        return chess.pass_time(1.0 / self.prefill_tokens_s, self.decode_s, self.crowding)


DEFAULT_FLEET = (
    InstanceTable.model_validate({"kind": "A100", "count": 2}),
    InstanceTable.model_validate({"kind": "A6000"}),
    InstanceTable.model_validate({"kind": "L40S"}),
)


class AlphaProblem(Problem):
    """A whole problem file; `headway plan tune-alpha --trace FILE` needs none."""

    trace: str = Field(min_length=1, description="JSON lines: a query each, with its stages and their calls")
    instance: tuple[InstanceTable, ...] = Field(DEFAULT_FLEET, min_length=1, description="[[instance]] tables")
    template: tuple[str, ...] = Field((), description="stages a query is expected to have; none: as the trace's have")
    scheduler: str = Field("vllm-like", description="of every instance")

    @field_validator("scheduler")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            system = scheduler_system(value)
            of_one_lane(system.make(system.settings()), value)
        except BadInput as error:
            raise ValueError(str(error)) from None
        return value


class TuneAlpha(Planner[HexgenSettings]):
    """The tuner, once."""

    card = SYSTEM
    settings = HexgenSettings

    def plan(self, problem: Mapping[str, Any], settings: HexgenSettings, context: PlanContext) -> dict[str, Any]:
        asked: AlphaProblem = AlphaProblem.parse(problem, context.source)
        if settings.alpha != "auto":
            raise BadInput(f"alpha={settings.alpha}: nothing is left to tune", "leave alpha out; give alpha_grid")
        queries = read_queries(context.folder / asked.trace)
        fleet = fleet_of(asked, queries, settings)
        begin = time.monotonic()
        with context.progress.task("replaying the window", len(set(settings.alpha_grid))) as task:

            def p95(window: Any, alpha: float) -> float:
                found = fleet.p95(window, alpha)
                task.advance()
                return found

            alpha, found = tune(queries, settings.alpha_grid, p95)
        seconds = time.monotonic() - begin
        plain, _ = fleet.run(queries, RoundRobin(), by_urgency=False)
        best = found[alpha]
        failed = sorted({run.failed for run in plain if run.failed})
        return {
            "met": bool(np.isfinite(best)),
            "alpha": alpha,
            "p95_s": {f"{key:g}": _finite(value) for key, value in found.items()},
            "round_robin_p95_s": _finite(quantile(plain)),
            "round_robin_mean_s": _finite(float(latencies(plain).mean())),
            "slo_s": fleet.deadlines.slo_s,
            "queries": len(queries),
            "calls": sum(query.calls for query in queries),
            "fleet": [machine.kind for machine in fleet.machines],
            "simulated_s": queries[-1].t - queries[0].t,
            "seconds": seconds,
            "failed": failed,
        }

    def table(self, plan: Mapping[str, Any]) -> str:
        shown = {alpha: "no" if value is None else f"{value:.1f} s" for alpha, value in plan["p95_s"].items()}
        lines = [f"alpha {plan['alpha']:g} for {plan['queries']} queries ({plan['calls']} calls)"]
        lines += [f"  alpha {alpha}: 95 % of the queries within {value}" for alpha, value in shown.items()]
        if plan["round_robin_p95_s"] is not None:
            lines.append(f"  round-robin, first come first served: {plan['round_robin_p95_s']:.1f} s")
        return "\n".join([*lines, *(f"  fails: {why}" for why in plan["failed"])])


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def fleet_of(asked: AlphaProblem, queries: list[Query], settings: HexgenSettings) -> WorkflowFleet:
    """The fleet of a problem. Stages that the authors measured on a known machine take that long; others by lengths."""
    system = scheduler_system(asked.scheduler)
    machines: list[Machine] = []
    seconds: dict[str, Mapping[str, float]] = {}
    costs: dict[str, IterationTime] = {}
    for table in asked.instance:
        cost = table.cost()
        if costs.setdefault(table.kind, cost) != cost:
            raise BadInput(
                f"two tables of kind {table.kind!r} differ", "instances of one kind are alike; name them apart"
            )
        if table.decode_s is None:
            seconds[table.kind] = chess.SECONDS[table.kind]
        setting = Setting(table.kv_tokens // PAGE_TOKENS, PAGE_TOKENS, Limits(max_seqs=table.max_seqs))
        made = Machine(table.kind, lambda: system.make(system.settings()), OneLane(cost), setting)
        machines += [made] * table.count
    kinds = tuple(machine.kind for machine in machines)
    times = StageTimes(kinds, seconds, shapes(lengths(queries)), costs)
    deadlines = StageDeadlines(times, asked.template or expected(queries), settings.slo_s, settings.slo_scale)
    return WorkflowFleet(tuple(machines), times, deadlines, settings.late_last, settings.prefix_weight)


def expected(queries: list[Query]) -> tuple[str, ...]:
    """The stages of the query with the median number of them."""
    ordered = sorted(queries, key=lambda query: len(query.stages))
    return tuple(stage.name for stage in ordered[len(ordered) // 2].stages if stage.calls)
