"""What types of machine can do: throughputs by bucket, from the simulator, from real load runs, or in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.progress import Progress
from headway.core.system import PlanContext, Settings
from headway.planning.buckets import Buckets
from headway.planning.datasheet import PAGE_TOKENS, ServedModel
from headway.planning.fleet_problem import FleetProblem, ModelTable, TypeTable, table
from headway.planning.here import Here
from headway.planning.milp import F64
from headway.planning.throughput import LoadRun, find, simulated
from headway.planning.workload import SAMPLE, mixed
from headway.serving.fleet import Machine
from headway.serving.schedulers.base import SLO, Limits
from headway.serving.schedulers.sarathi_serve import Sarathi, SarathiSettings
from headway.serving.simulator import OneLane, Setting
from headway.serving.trace import Trace

MOST_SEQS = 1024


class ProfileSettings(Settings):
    """How throughputs are found."""

    profile: Literal["simulated", "measured", "formula"] = Field(
        "simulated", description="where throughputs come from: the simulator, real load runs here, a closed form"
    )
    sizes: Literal["edge", "mean"] = Field(
        "edge", description="a bucket's requests count as its edge, or as their mean"
    )
    tput_tol: float = Field(0.05, gt=0, lt=1, description="throughputs are bracketed within this share")
    requests: int = Field(200, ge=10, description="of a load run, at least")
    seconds: float = Field(60.0, gt=0, description="of a load run, at least")


@dataclass(frozen=True)
class Profiled:
    """One type of machine with what it can do."""

    name: str
    price: float
    cap: int | None
    throughput: F64
    """Requests per second of one instance by bucket; 0: it cannot hold the SLO there."""
    machine: Machine | None = None
    """The same in the simulator; None where only throughputs are known."""


@dataclass(frozen=True)
class Demand:
    """What arrives: requests per second and their shares by bucket."""

    buckets: Buckets
    shares: F64
    rate: float
    trace: Trace | None = None
    """Requests to simulate, where more than shares is known."""


def read_demand(
    asked: FleetProblem, settings: ProfileSettings, folder: Path, seed: int, check: int
) -> tuple[Demand, tuple[F64, F64]]:
    """What arrives, with `check` requests to simulate, and the (prompt, output) size that stands for each bucket."""
    if asked.buckets.shares is not None:
        demand = Demand(asked.buckets.buckets(), asked.buckets.table(), asked.rate)
        return demand, edge_sizes(demand.buckets)
    parts = list(asked.workload)
    sample = mixed(parts, SAMPLE, folder, seed)
    buckets = asked.buckets.buckets().covering(sample)
    checked = mixed(parts, check, folder, seed + 1) if check else None
    demand = Demand(buckets, buckets.shares(sample), asked.rate, checked)
    return demand, edge_sizes(buckets) if settings.sizes == "edge" else mean_sizes(buckets, sample)


def edge_sizes(buckets: Buckets) -> tuple[F64, F64]:
    """Rounded up, so that no bucket is underestimated (the paper's way)."""
    prompt, output = np.meshgrid(buckets.in_edges, buckets.out_edges, indexing="ij")
    return prompt.astype(float), output.astype(float)


def mean_sizes(buckets: Buckets, trace: Trace) -> tuple[F64, F64]:
    """Means over the requests of each bucket; the edge where there is none."""
    counts = buckets.shares(trace) * len(trace)
    at = buckets.rows(trace.prompt), buckets.columns(trace.output)
    found = []
    for values, edges in zip((trace.prompt, trace.output), edge_sizes(buckets), strict=True):
        sums = np.zeros(buckets.shape)
        np.add.at(sums, at, values.astype(float))
        found.append(np.where(counts > 0, np.ceil(sums / np.maximum(counts, 1)), edges))
    return found[0], found[1]


def profile(
    asked: FleetProblem, demand: Demand, sizes: tuple[F64, F64], settings: ProfileSettings, context: PlanContext
) -> list[Profiled]:
    """Throughputs of every type for the buckets in use; 0 elsewhere."""
    slo = asked.slo.slo() if asked.slo is not None else SLO()
    found = []
    for kind in asked.type:
        if kind.throughput is not None:
            values = table(kind.throughput, demand.buckets.shape, f"throughput of {kind.name}")
            if (values < 0).any():
                raise BadInput(f"throughput of {kind.name}: {values.min():g} is negative", "write 0 where it fails")
            found.append(Profiled(kind.name, kind.price, kind.cap, values))
        elif kind.recipe is not None:
            found.append(_here(kind, asked, demand, sizes, slo, settings, context))
        else:
            found.append(_sheet(kind, asked, demand, sizes, slo, settings, context))
    return found


def _sheet(
    kind: TypeTable,
    asked: FleetProblem,
    demand: Demand,
    sizes: tuple[F64, F64],
    slo: SLO,
    settings: ProfileSettings,
    context: PlanContext,
) -> Profiled:
    model = asked.model.served() if isinstance(asked.model, ModelTable) else served(context.load(asked.model, ""))
    if settings.profile == "measured":
        raise BadInput(f"{kind.name} is known by its data sheet alone", 'take profile="simulated" or give throughputs')
    sheet = kind.sheet()
    pages = sheet.kv_tokens(model) // PAGE_TOKENS
    if not pages:
        return Profiled(kind.name, kind.price, kind.cap, np.zeros(demand.buckets.shape))
    device = OneLane(sheet.iteration_time(model))
    machine = Machine(kind.name, scheduler, device, Setting(pages, PAGE_TOKENS, Limits(max_seqs=MOST_SEQS), slo))
    if settings.profile == "formula":
        if slo.tpot_s is None:
            raise BadInput("the closed form needs a limit per token", "give tpot_ms in [slo]")
        limit = slo.tpot_s
        values = np.zeros(demand.buckets.shape)
        for row, column in np.argwhere(demand.shares > 0):
            prompt, output = int(sizes[0][row, column]), int(sizes[1][row, column])
            values[row, column] = sheet.throughput(model, prompt, output, limit)
        return Profiled(kind.name, kind.price, kind.cap, values, machine)
    values = simulated_table(machine, demand, sizes, settings, context.progress, context.seed)
    return Profiled(kind.name, kind.price, kind.cap, values, machine)


def _here(
    kind: TypeTable,
    asked: FleetProblem,
    demand: Demand,
    sizes: tuple[F64, F64],
    slo: SLO,
    settings: ProfileSettings,
    context: PlanContext,
) -> Profiled:
    assert isinstance(asked.model, str) and kind.recipe is not None
    if settings.profile == "formula":
        raise BadInput(
            f"{kind.name} is this machine: there is no closed form", 'take profile="simulated" or "measured"'
        )
    model = context.load(asked.model, kind.recipe)
    here = Here.measured(
        model, kind.threads, kv_bytes=kind.kv_gb * 1e9, max_seqs=64, progress=context.progress, use="the planner"
    )
    machine = here.machine(kind.name, scheduler, slo)
    values = simulated_table(machine, demand, sizes, settings, context.progress, context.seed)
    if settings.profile == "measured":
        load = LoadRun(context.seed, settings.requests, settings.seconds)
        values = measured_table(here, values, demand, sizes, slo, load, settings.tput_tol, context.progress)
    return Profiled(kind.name, kind.price, kind.cap, values, machine)


def scheduler() -> Sarathi:
    """The engine's default, under the SLO of its setting."""
    return Sarathi(SarathiSettings())


def served(model: Any) -> ServedModel:
    """A language model as a roofline sees it."""
    arch = getattr(model, "architecture", None)
    if arch is None:
        raise BadInput(f"{model.name} is no language model", "profiles are made for one")
    weights = sum(site.out_features * site.in_features for site in model.sites())
    return ServedModel(
        float(model.size_bytes()), 2.0 * weights, 2.0 * 2 * len(arch.layers) * arch.kv_heads * arch.head_dim
    )


def simulated_table(
    machine: Machine, demand: Demand, sizes: tuple[F64, F64], settings: ProfileSettings, progress: Progress, seed: int
) -> F64:
    """Throughputs of the buckets in use in the simulator, each remembered."""
    cache = StepCache()
    values = np.zeros(demand.buckets.shape)
    used = np.argwhere(demand.shares > 0)
    load = LoadRun(seed, settings.requests, settings.seconds)
    cost = machine.device.cost.as_json()  # type: ignore[attr-defined]
    for row, column in progress.track(used, f"simulating loads of {machine.kind}"):
        prompt, output = int(sizes[0][row, column]), int(sizes[1][row, column])
        setting, slo = machine.setting, machine.setting.slo
        about = [cost, setting.pages, setting.page_tokens, setting.limits.max_seqs, setting.limits.max_len]
        limits = [slo.ttft_s, slo.tbt_s, slo.tpot_s, slo.quantile]
        key = StepCache.key(
            "simulated-throughput",
            about,
            limits,
            prompt,
            output,
            load.seed,
            load.requests,
            load.seconds,
            settings.tput_tol,
        )
        values[row, column] = cache.json(
            key,
            lambda p=prompt, o=output: simulated(machine, p, o, load, settings.tput_tol),  # type: ignore[misc]
        )
    return values


def measured_table(
    here: Here,
    guesses: F64,
    demand: Demand,
    sizes: tuple[F64, F64],
    slo: SLO,
    load: LoadRun,
    tolerance: float,
    progress: Progress,
) -> F64:
    """Throughputs of the buckets in use by real load runs, each begun at the simulator's figure."""
    values = np.zeros(demand.buckets.shape)
    for row, column in progress.track(np.argwhere(demand.shares > 0), "measuring loads"):
        prompt, output = int(sizes[0][row, column]), int(sizes[1][row, column])
        values[row, column] = find(
            lambda trace: here.run(scheduler(), trace, slo).outcome,
            prompt, output, slo, float(guesses[row, column]), load, tolerance,
        )  # fmt: skip
    return values
