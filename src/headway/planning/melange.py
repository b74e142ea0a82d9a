"""`melange`: the cheapest mix of machine types for a load, by how each type copes with each size of request.

Mélange (arXiv 2404.14527). Throughputs by bucket under the SLO, then an integer program (`allocation`), then a routing
table. Decided here: the router sees prompts only, so that by default (`route_by="prompt"`) a bucket's answers are split
alike; the paper's own program, which splits by answer too, is `route_by="size"`. The fleet is then simulated with its
router, and planned again with more headroom while it misses its SLO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.system import PlanContext, Planner
from headway.planning.allocation import Allocation, allocate, missing, single_type
from headway.planning.buckets import Buckets
from headway.planning.fleet_problem import FleetProblem
from headway.planning.milp import F64
from headway.planning.profiles import Demand, Profiled, ProfileSettings, profile, read_demand
from headway.planning.throughput import sustained
from headway.serving.dispatch.by_size import BySize, RoutingTable
from headway.serving.fleet import TraceWork, simulate_fleet
from headway.serving.outcome import Outcome
from headway.serving.schedulers.base import SLO
from headway.serving.trace import Trace

SYSTEM = Card(
    slug="melange",
    title="Mélange",
    paper="Melange: Cost Efficient LLM Serving by Exploiting GPU Heterogeneity, 2024 (arXiv 2404.14527)",
    kind="planner",
    slot="placement",
    summary="the cheapest mix of machine types that serves a load within its latency limits",
    claim="15 to 77 % cheaper than fleets of one type on short requests, 15 to 33 % on long ones (120 ms per token)",
)

REPAIR = 0.1
"""Headroom that each further try adds."""


class MelangeSettings(ProfileSettings):
    """Settings of the fleet planner."""

    slice_factor: int = Field(8, ge=0, le=64, description="pieces of a bucket, each served by one type; 0 = any share")
    headroom: float = Field(0.1, ge=0, le=4, description="share of the rate that is planned for beyond it")
    route_by: Literal["prompt", "size"] = Field(
        "prompt", description="what splits a bucket; size = the paper's program"
    )
    sizes: Literal["edge", "mean"] = Field(
        "edge", description="a bucket's requests count as its edge, or as their mean"
    )
    profile: Literal["simulated", "measured", "formula"] = Field(
        "simulated", description="where throughputs come from: the simulator, real load runs here, a closed form"
    )
    tput_tol: float = Field(0.05, gt=0, lt=1, description="throughputs are bracketed within this share")
    requests: int = Field(200, ge=10, description="of a load run, at least")
    seconds: float = Field(60.0, gt=0, description="of a load run, at least")
    check: int = Field(2000, ge=0, description="requests that the planned fleet is simulated with; 0 = none")
    repairs: int = Field(3, ge=0, description="tries with more headroom while the fleet misses its SLO")
    time_limit_s: float = Field(10.0, gt=0, description="of the solver")


@dataclass(frozen=True)
class FleetPlan:
    """An allocation and how to route to it."""

    allocation: Allocation
    routing: RoutingTable
    headroom: float
    attainment: float | None = None
    """Share of the simulated requests that held their limits."""
    steady: bool | None = None
    """Whether the simulated fleet kept up."""
    outcome: Outcome | None = None


def plan_fleet(
    demand: Demand, types: Sequence[Profiled], settings: MelangeSettings, headroom: float | None = None
) -> FleetPlan:
    """The cheapest fleet and its routing table; nothing is simulated.

    Raises `BadInput` for a bucket that no type can serve and for caps that are too low, naming what would do.
    """
    headroom = settings.headroom if headroom is None else headroom
    with np.errstate(divide="ignore"):
        seconds = np.array([1.0 / kind.throughput for kind in types])  # (types, rows, columns)
    rates = demand.rate * (1 + headroom) * demand.shares
    refuse_impossible(demand, seconds)
    by_row = _by_row(demand.shares, seconds)
    prices, caps = [kind.price for kind in types], [kind.cap for kind in types]
    if settings.route_by == "prompt":
        flat = rates.sum(axis=1), by_row
    else:
        flat = rates.ravel(), seconds.reshape(len(types), -1)
    found = allocate(*flat, prices, caps, settings.slice_factor, time_limit_s=settings.time_limit_s)
    if found is None:
        raise _capped(flat, types, settings)
    shares = found.shares
    if settings.route_by == "size":
        weights = demand.shares / np.maximum(demand.shares.sum(axis=1, keepdims=True), 1e-300)
        shares = (shares.reshape(*demand.shares.shape, -1) * weights[:, :, None]).sum(axis=1)
    return FleetPlan(found, _routing(demand.buckets, types, shares, by_row.T, found.counts), headroom)


def refuse_impossible(demand: Demand, seconds: F64) -> None:
    """Raise `BadInput` for a bucket in use that no type can serve."""
    nowhere = np.argwhere((demand.shares > 0) & ~np.isfinite(seconds).any(axis=0))
    if len(nowhere) and demand.rate > 0:
        name = demand.buckets.name(*(int(n) for n in nowhere[0]))
        raise BadInput(
            f"no type holds the limits for {name} (or has the memory for one such request)",
            "loosen the slo, cut the lengths, or add a faster type",
        )


def _by_row(shares: F64, seconds: F64) -> F64:
    """(types, rows): the mean over a row's answers; infinite where one of them cannot be served."""
    weights = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    found = (np.where(shares > 0, seconds, 0.0) * weights).sum(axis=2)
    bare = shares.sum(axis=1) == 0  # nothing is known of these answers: the shortest
    found[:, bare] = seconds[:, bare, 0]
    return found


def _routing(
    buckets: Buckets, types: Sequence[Profiled], shares: F64, loads: F64, counts: np.ndarray[Any, Any]
) -> RoutingTable:
    """Rows nobody planned for go to the types there are, by their instances."""
    shares = shares.copy()
    spread = counts / counts.sum() if counts.sum() else np.full(len(types), 1.0 / len(types))
    shares[shares.sum(axis=1) < 0.5] = spread
    shares /= shares.sum(axis=1, keepdims=True)
    return RoutingTable(buckets.in_edges, tuple(kind.name for kind in types), shares, loads)


def _capped(flat: tuple[F64, F64], types: Sequence[Profiled], settings: MelangeSettings) -> BadInput:
    prices, caps = [kind.price for kind in types], [kind.cap for kind in types]
    more, cost = missing(*flat, prices, caps, settings.slice_factor)
    wanted = ", ".join(
        f"{kind.name} to {(kind.cap or 0) + int(n)}" for kind, n in zip(types, more, strict=True) if n > 0
    )
    return BadInput(
        "the caps are too low for this load", f"cheapest: raise the cap of {wanted} ({cost:.2f} USD/h more)"
    )


def check_fleet(
    plan: FleetPlan, types: Sequence[Profiled], trace: Trace, slo: SLO, without: int | None = None
) -> FleetPlan:
    """The plan, with what its fleet does in the simulator under a trace. without: a type that lacks one instance."""
    machines = []
    for at, (kind, count) in enumerate(zip(types, plan.allocation.counts.tolist(), strict=True)):
        assert kind.machine is not None
        machines += [kind.machine] * (count - (at == without))
    if not machines:
        return FleetPlan(plan.allocation, plan.routing, plan.headroom, 0.0, False)
    record = Outcome.begin(trace)
    simulate_fleet(machines, TraceWork(trace), BySize(plan.routing), record)
    held = np.ones(len(trace), bool)
    if slo.tpot_s is not None:
        held &= ~(record.tpot > slo.tpot_s)
    if slo.ttft_s is not None:
        held &= record.ttft <= slo.ttft_s
    share = float((held & ~np.isnan(record.finish)).mean())
    return FleetPlan(plan.allocation, plan.routing, plan.headroom, share, sustained(record, slo), record)


def holds(plan: FleetPlan, slo: SLO) -> bool:
    """Whether the simulated fleet kept up and enough of its requests held their limits."""
    return plan.attainment is not None and bool(plan.steady) and plan.attainment >= slo.quantile


class Melange(Planner[MelangeSettings]):
    """Fleet allocation."""

    card = SYSTEM
    settings = MelangeSettings

    def plan(self, problem: Mapping[str, Any], settings: MelangeSettings, context: PlanContext) -> dict[str, Any]:
        asked: FleetProblem = FleetProblem.parse(problem, context.source)
        demand, sizes = read_demand(asked, settings, context.folder, context.seed, settings.check)
        types = profile(asked, demand, sizes, settings, context)
        slo = asked.slo.slo() if asked.slo is not None else SLO()
        best = plan_fleet(demand, types, settings)
        notes = []
        whole = demand.trace is not None and settings.check and demand.rate > 0
        if whole and all(kind.machine is not None for kind in types):
            assert demand.trace is not None
            trace = demand.trace.at_rate(demand.rate)
            for attempt in range(settings.repairs + 1):
                with context.progress.task("simulating the fleet"):
                    best = check_fleet(best, types, trace, slo)
                if holds(best, slo) or attempt == settings.repairs:
                    break
                more = best.headroom + REPAIR
                notes.append(f"with headroom {best.headroom:.2f} the simulated fleet missed its limits; now {more:.2f}")
                best = plan_fleet(demand, types, settings, more)
        else:
            notes.append("not simulated: some type is known by its throughputs alone, or no workload was given")
        met = best.attainment is None or holds(best, slo)
        return document(best, demand, types, slo, met, notes)

    def table(self, plan: Mapping[str, Any]) -> str:
        cost, predicted = plan["cost_usd_per_h"], plan["predicted"]
        unproven = "" if plan["optimal"] else f" (not proven optimal, gap {plan['gap']:.1%})"
        lines = [f"{cost:.2f} USD/h for {plan['rate']:g} requests/s{unproven}"]
        for item in plan["fleet"]:
            if item["count"]:
                each = f"{item['price']:.2f} USD/h, {item['load']:.2f} instances' worth of work"
                lines.append(f"  {item['count']} x {item['type']} at {each}")
        for name, alone in plan["single_type_usd_per_h"].items():
            saved = f" ({1 - cost / alone:.0%} saved)" if alone else ""
            lines.append(f"  {name} alone: " + ("cannot serve it" if alone is None else f"{alone:.2f} USD/h{saved}"))
        if predicted["attainment"] is not None:
            pace = "keeps up" if predicted["steady"] else "falls behind"
            lines.append(f"  simulated with its router: {predicted['attainment']:.2%} hold the slo, the fleet {pace}")
        return "\n".join([*lines, *(f"  note: {note}" for note in plan["notes"])])


def document(
    plan: FleetPlan, demand: Demand, types: Sequence[Profiled], slo: SLO, met: bool, notes: list[str]
) -> dict[str, Any]:
    """A plan as JSON."""
    found = plan.allocation
    rates = demand.rate * (1 + plan.headroom) * demand.shares
    with np.errstate(divide="ignore"):
        alone = {k.name: single_type(rates.ravel(), 1.0 / k.throughput.ravel(), k.price) for k in types}
    return {
        "met": met,
        "rate": demand.rate,
        "slo": {"ttft_s": slo.ttft_s, "tpot_s": slo.tpot_s, "tbt_s": slo.tbt_s, "quantile": slo.quantile},
        "fleet": [
            {"type": kind.name, "count": int(count), "price": kind.price, "load": float(load)}
            for kind, count, load in zip(types, found.counts, found.loads, strict=True)
        ],
        "cost_usd_per_h": found.cost,
        "bound_usd_per_h": found.bound,
        "optimal": found.optimal,
        "gap": 0.0 if found.optimal else (found.cost - found.bound) / max(found.cost, 1e-12),
        "headroom": plan.headroom,
        "single_type_usd_per_h": {name: cost if np.isfinite(cost) else None for name, cost in alone.items()},
        "routing": plan.routing.as_json(),
        "buckets": {
            "in_edges": list(demand.buckets.in_edges),
            "out_edges": list(demand.buckets.out_edges),
            "shares": demand.shares.tolist(),
        },
        "throughput": {kind.name: kind.throughput.tolist() for kind in types},
        "predicted": {"attainment": plan.attainment, "steady": plan.steady},
        "notes": notes,
    }
