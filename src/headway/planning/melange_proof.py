"""The proof of `melange`: its solver against brute force, the paper's fleets, and planned fleets under load.

The solver and the paper's machines need no measurement; the planned fleets run in the simulator with their router; and
three types of instance of this machine are profiled and loaded for real.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.core.registry import system
from headway.core.system import Context
from headway.kernels import cpu
from headway.planning.allocation import FULL, allocate, single_type
from headway.planning.buckets import Buckets
from headway.planning.datasheet import LLAMA2_7B, PAGE_TOKENS, DataSheet
from headway.planning.here import Here
from headway.planning.melange import SYSTEM, MelangeSettings, check_fleet, holds, plan_fleet
from headway.planning.milp import F64, minimise
from headway.planning.profiles import Demand, Profiled, mean_sizes, measured_table, scheduler, simulated_table
from headway.planning.throughput import LoadRun, sustained
from headway.planning.workload import LogNormal, Part, mixed
from headway.serving.fleet import Machine
from headway.serving.schedulers.base import SLO, Limits
from headway.serving.simulator import OneLane, Setting
from headway.serving.trace import Trace

BASELINE = "fleets of a single machine type for the same load, and exhaustive search for the solver"

GOLDEN = {1: (3, 1, 6.70), 2: (2, 1, 5.69), 3: (1, 1, 4.68), 4: (2, 1, 5.69), 8: (2, 1, 5.69), 16: (2, 1, 5.69)}
"""A10Gs, A100s and USD/h by slice factor, for the example of the released code."""
GOLDEN_THROUGHPUT = np.array([[[2.0, 1], [5, 2]], [[20, 20], [40, 20]]])
GOLDEN_RATES = 30 * np.array([[0.2, 0.1], [0.5, 0.2]])
GOLDEN_PRICES = (1.01, 3.67)

SHEETS = {
    "L4": (0.70, DataSheet(24e9, 300e9, 121e12)),
    "A10G": (1.01, DataSheet(24e9, 600e9, 70e12)),
    "A100": (3.67, DataSheet(80e9, 2039e9, 312e12)),
    "H100": (7.516, DataSheet(80e9, 3350e9, 989e12)),
}
"""USD/h on demand and the vendors' figures."""
SHORT = Part(
    prompt=LogNormal(median=60, sigma=1.2, most=4000), output=LogNormal(median=200, sigma=0.8, most=2000), share=1.0
)
"""Like Chatbot Arena's."""
LONG = Part(
    prompt=LogNormal(median=4000, sigma=0.3, most=8000), output=LogNormal(median=250, sigma=0.3, most=2000), share=1.0
)
"""Like PubMed's summaries."""
MIXES = {
    "short": [SHORT],
    "long": [LONG],
    "mixed": [SHORT.model_copy(update={"share": 0.8}), LONG.model_copy(update={"share": 0.2})],
}
RATES = (1, 2, 4, 8, 16, 32)
JUDGED = (1, 4, 16, 32)
LIMITS = (0.120, 0.040)


def prove(context: ProofContext) -> Evidence:
    """Raises `BadInput` for a model that is no language model."""
    evidence = context.begin(SYSTEM.slug, context.threads or cpu.threads())
    golden(evidence)
    exact(evidence, context)
    large(evidence, context)
    paper(evidence, context)
    fleets(evidence, context)
    real(evidence, context)
    return evidence


# ---- (a) the solver ------------------------------------------------------------------------------------------------


def golden(evidence: Evidence) -> None:
    seconds = (1 / GOLDEN_THROUGHPUT).reshape(2, -1)
    rates = GOLDEN_RATES.ravel()
    wrong = []
    for slices, (small, big, cost) in GOLDEN.items():
        found = allocate(rates, seconds, GOLDEN_PRICES, (None, None), slices)
        if found is None or (*found.counts, round(found.cost, 2)) != (small, big, cost):
            wrong.append(f"S={slices}: {found and found.counts}")
    free = allocate(rates, seconds, GOLDEN_PRICES, (None, None), 0)
    alone = [single_type(rates, seconds[at], price) for at, price in enumerate(GOLDEN_PRICES)]
    if free is None or round(free.cost, 2) != 4.68 or [round(cost, 2) for cost in alone] != [12.12, 7.34]:
        wrong.append(f"any share: {free and free.cost}, single types {alone}")
    evidence.bar(
        "the released example at 1 to 16 slices and any share", "6.70, 5.69, 4.68, 5.69 ... USD/h", "exactly",
        ", ".join(wrong) or "exactly", not wrong,
    )  # fmt: skip


def random_case(random: np.random.Generator) -> tuple[F64, F64, list[float], list[int | None], int]:
    """(rates, seconds, prices, caps, slices) of at most 3 types, 4 buckets and 3 slices; some pairs are impossible."""
    types, buckets = int(random.integers(1, 4)), int(random.integers(1, 5))
    seconds = random.uniform(0.05, 2.0, (types, buckets))
    seconds[random.random((types, buckets)) < 0.15] = np.inf
    caps = [int(random.integers(0, 6)) if random.random() < 0.3 else None for _ in range(types)]
    return (
        random.uniform(0.1, 3.0, buckets),
        seconds,
        random.uniform(0.1, 8, types).tolist(),
        caps,
        int(random.integers(1, 4)),
    )


def splits(slices: int, types: int) -> Iterator[tuple[int, ...]]:
    """All ways to give that many slices to that many types."""
    if types == 1:
        yield (slices,)
        return
    for first in range(slices + 1):
        for rest in splits(slices - first, types - 1):
            yield (first, *rest)


def exhaustive(rates: F64, seconds: F64, prices: list[float], caps: list[int | None], slices: int) -> float | None:
    """The least cost over every assignment; None: none is possible."""
    best: float | None = None
    most = np.array([np.inf if cap is None else cap for cap in caps])
    for choice in product(list(splits(slices, len(prices))), repeat=len(rates)):
        taken = np.array(choice, float) / slices  # (buckets, types)
        if not np.isfinite(seconds.T[taken > 0]).all():
            continue
        loads = (np.where(taken > 0, seconds.T, 0.0) * taken * rates[:, None]).sum(axis=0)
        counts = np.ceil(loads - FULL)
        cost = float(counts @ np.array(prices))
        if (counts <= most).all() and (best is None or cost < best):
            best = cost
    return best


def binary(rates: F64, seconds: F64, prices: list[float], caps: list[int | None], slices: int) -> float | None:
    """The paper's own program: one binary for each slice and type."""
    types = len(prices)
    work = np.repeat((seconds * rates).T / slices, slices, axis=0)  # (slices of all buckets, types)
    possible = np.isfinite(work)
    matrix = np.zeros((len(work) + types, work.size + types))
    for at in range(len(work)):
        matrix[at, at * types : (at + 1) * types] = 1
        for kind in range(types):
            matrix[len(work) + kind, at * types + kind] = work[at, kind] if possible[at, kind] else 0.0
    matrix[len(work) :, work.size :] = -np.eye(types)
    low = np.concatenate([np.ones(len(work)), np.full(types, -np.inf)])
    high = np.concatenate([np.ones(len(work)), np.zeros(types)])
    needed = np.ceil(np.where(possible, work, 0.0).sum(axis=0))
    machines = [n if cap is None else min(n, cap) for n, cap in zip(needed, caps, strict=True)]
    most = np.concatenate([possible.astype(float).ravel(), machines])
    cost = np.concatenate([np.zeros(work.size), prices])
    found = minimise(cost, matrix, low, high, most, np.ones(len(cost), bool), time_limit_s=60)
    return None if found is None else found.cost


def exact(evidence: Evidence, context: ProofContext) -> None:
    random = np.random.default_rng(context.seed)
    wrong, impossible = [], 0
    for at in context.progress.track(range(300), "solver against exhaustive search"):
        case = random_case(random)
        wanted = exhaustive(*case)
        impossible += wanted is None
        found = allocate(*case)
        costs = [None if found is None else found.cost, binary(*case)]
        if any((c is None) != (wanted is None) or (c is not None and abs(c - wanted) > 1e-6) for c in costs):  # type: ignore[operator]
            wrong.append(f"case {at}: {wanted} against {costs}")
    evidence.bar(
        "300 random problems against exhaustive search, whole numbers and the paper's binaries", "exact",
        "equal to 1e-6",
        f"{'; '.join(wrong[:2]) or 'equal'} ({impossible} impossible)", not wrong and impossible > 0,
    )  # fmt: skip


def large_case(random: np.random.Generator) -> tuple[F64, F64, list[float]]:
    """(rates, seconds, prices) of 60 buckets and 4 types."""
    base = np.sort(random.uniform(0.5, 30, 60))
    speed = np.array([1.0, 1.9, 16, 27])
    throughput = base * speed[:, None] * random.lognormal(0, 0.3, (4, 60))
    return random.dirichlet(np.ones(60)) * random.uniform(20, 1000), 1 / throughput, [0.70, 1.01, 3.67, 7.516]


def large(evidence: Evidence, context: ProofContext) -> None:
    random = np.random.default_rng(context.seed)
    longest, optimal, sane = 0.0, True, True
    for _ in context.progress.track(range(3 if context.quick else 10), "large problems"):
        rates, seconds, prices = large_case(random)
        begin = time.process_time()
        found = allocate(rates, seconds, prices, [None] * 4, 8, time_limit_s=60)
        longest = max(longest, time.process_time() - begin)
        free = allocate(rates, seconds, prices, [None] * 4, 0, time_limit_s=60)
        assert found is not None and free is not None
        optimal &= found.optimal
        alone = min(single_type(rates, seconds[at], price) for at, price in enumerate(prices))
        sane &= free.cost - 1e-6 <= found.cost <= alone + 1e-6
    evidence.bar(
        "60 buckets, 4 types, 8 slices to optimality", "at most 1.2 s", "< 2 s of one core",
        f"{longest:.2f} s, {'optimal' if optimal else 'not optimal'}", longest < 2 and optimal,
    )  # fmt: skip
    evidence.bar(
        "between the cost with any share and the cheapest single type", "always", "always",
        "always" if sane else "broken", sane,
    )  # fmt: skip


# ---- (b) the paper's machines --------------------------------------------------------------------------------------


def demand_of(
    name: str, rate: float, seed: int, buckets: Buckets | None = None, check: int = 0
) -> tuple[Demand, Trace]:
    sample = mixed(MIXES[name], 20_000, _NOWHERE, seed)
    covering = (buckets or Buckets()).covering(sample)
    trace = mixed(MIXES[name], check, _NOWHERE, seed + 1).at_rate(rate) if check else None
    return Demand(covering, covering.shares(sample), rate, trace), sample


_NOWHERE = Path()


def formula_types(demand: Demand, limit: float) -> list[Profiled]:
    """Llama2-7B in float16 on the paper's machines, each bucket at its edges, in closed form."""
    found = []
    for name, (price, sheet) in SHEETS.items():
        values = np.array(
            [
                [sheet.throughput(LLAMA2_7B, i, o, limit) for o in demand.buckets.out_edges]
                for i in demand.buckets.in_edges
            ]
        )
        found.append(Profiled(name, price, None, values))
    return found


def paper(evidence: Evidence, context: ProofContext) -> None:
    settings = MelangeSettings(headroom=0.0, route_by="size", time_limit_s=60)
    cells: dict[tuple[float, str, int], tuple[float, list[float], list[int]]] = {}
    with context.progress.task("the paper's fleets", len(LIMITS) * len(MIXES) * len(RATES)) as task:
        for limit, name in product(LIMITS, MIXES):
            types: list[Profiled] = []
            for rate in RATES:
                demand, _ = demand_of(name, rate, 0)
                types = types or formula_types(demand, limit)
                found = plan_fleet(demand, types, settings).allocation
                with np.errstate(divide="ignore"):
                    alone = [
                        single_type((rate * demand.shares).ravel(), 1 / kind.throughput.ravel(), kind.price)
                        for kind in types
                    ]
                cells[limit, name, rate] = found.cost, alone, found.counts.tolist()
                task.advance()
    cost, alone, counts = cells[0.12, "short", 1]
    evidence.bar(
        "short requests, 120 ms, 1/s: one L4 and one A10G", "77 % below H100s alone", "exactly, 1.71 USD/h, 77 %",
        f"{counts} {cost:.2f} USD/h, {1 - cost / alone[3]:.0%} below H100s alone",
        counts == [1, 1, 0, 0] and round(cost, 2) == 1.71 and round(1 - cost / alone[3], 2) == 0.77,
    )  # fmt: skip
    worst = {key: 1 - cost / max(a for a in alone if np.isfinite(a)) for key, (cost, alone, _) in cells.items()}
    least = min(worst[key] for key in worst if key[0] == 0.12 and key[2] in JUDGED)
    evidence.bar(
        "saved over the worst single type in every cell at 120 ms",
        "15-77 %",
        ">= 50 %",
        f"{least:.0%} at least",
        least >= 0.5,
    )
    best = {key: 1 - cost / min(alone) for key, (cost, alone, _) in cells.items()}
    short = [best[0.12, "short", rate] for rate in JUDGED]
    evidence.bar(
        "saved over the best single type on short requests at 120 ms, 1, 4, 16 and 32/s", "15, 0, 27, 12 % (check run)",
        ">= 10 % at two of them", ", ".join(f"{s:.0%}" for s in short), sum(s >= 0.1 for s in short) >= 2,
    )  # fmt: skip
    judged = [best[key] for key in best if key[2] in JUDGED]
    evidence.bar(
        "saved over the best single type in all cells", "9-68 % (40 ms), 15-77 % (120 ms)",
        "> 0 in 9 of 24, never negative",
        f"> 0 in {sum(s > 1e-9 for s in judged)} of {len(judged)}, least {min(best.values()):.1%}",
        sum(s > 1e-9 for s in judged) >= 9 and min(best.values()) >= -1e-9,
    )  # fmt: skip
    small = [cells[0.04, name, rate][1][kind] for name in MIXES for rate in RATES for kind in (0, 1)]
    dear = [
        min(cells[0.04, name, rate][1][kind] for kind in (0, 1)) / min(cells[0.04, name, rate][1])
        for name in MIXES
        for rate in RATES
    ]
    moved = all(cells[0.04, "long", rate][1][3] < cells[0.04, "long", rate][1][2] for rate in (16, 32))
    kept = all(cells[0.12, "long", rate][1][3] > cells[0.12, "long", rate][1][2] for rate in (16, 32))
    saved = [best[0.04, "long", rate] for rate in (4, 8, 16, 32)]
    evidence.bar(
        "at 40 ms small machines fall out, long requests move from A100s to H100s", "from 16/s on; mixes save 2-11 %",
        "L4s, A10Gs alone impossible or twice the cost; H100s cheaper than A100s from 16/s on; mixes save >= 2 %",
        f"{sum(not np.isfinite(s) for s in small)} of {len(small)} impossible, else {min(dear):.1f}x at least; "
        f"mixes save {min(saved):.0%} to {max(saved):.0%}",
        min(dear) >= 2 and moved and kept and min(saved) >= 0.02,
    )  # fmt: skip


# ---- (c) planned fleets under load ---------------------------------------------------------------------------------

FINE = Buckets((40, 100, 250, 800, 4000), (80, 200, 400, 2000))


def machines(slo: SLO) -> dict[str, Machine]:
    """The paper's machines in the simulator."""
    return {
        name: Machine(
            name,
            scheduler,
            OneLane(sheet.iteration_time(LLAMA2_7B)),
            Setting(sheet.kv_tokens(LLAMA2_7B) // PAGE_TOKENS, PAGE_TOKENS, Limits(max_seqs=1024), slo),
        )
        for name, (_, sheet) in SHEETS.items()
    }


def fleets(evidence: Evidence, context: ProofContext) -> None:
    """Plans by simulated throughputs, each run with its router, whole and with one instance gone."""
    settings = MelangeSettings(tput_tol=0.05)
    limits = LIMITS[:1] if context.quick else LIMITS
    rates = (1, 4) if context.quick else (1, 2, 4, 8)
    count = 2000
    shares, broken, cases, shown = [], 0, 0, []
    for limit in limits:
        slo = SLO(tpot_s=limit)
        types: list[Profiled] = []
        for rate in rates:
            demand, sample = demand_of("short", rate, context.seed, FINE, check=count)
            if not types:
                sizes = mean_sizes(demand.buckets, sample)
                types = [
                    Profiled(
                        name, SHEETS[name][0], None,
                        simulated_table(machine, demand, sizes, settings, context.progress, context.seed), machine,
                    )
                    for name, machine in machines(slo).items()
                ]  # fmt: skip
            assert demand.trace is not None
            plan = check_fleet(plan_fleet(demand, types, settings), types, demand.trace, slo)
            shares.append((plan.attainment or 0.0, bool(plan.steady)))
            shown.append(f"{limit * 1e3:.0f} ms {rate}/s {plan.allocation.counts.tolist()} {plan.attainment:.1%}")
            for at, machine_count in enumerate(plan.allocation.counts):
                if machine_count:
                    cases += 1
                    broken += not holds(check_fleet(plan, types, demand.trace, slo, without=at), slo)
    evidence.bar(
        "planned fleets with their router, 2,000 requests: share that holds its limit", "> 99.5 to 99.95 %",
        ">= 99 % and no growing queue in every one", "; ".join(shown),
        all(share >= 0.99 and steady for share, steady in shares),
    )  # fmt: skip
    evidence.bar(
        "the same with one instance gone", "not over-provisioned", "broken in >= 80 % of the cases",
        f"{broken} of {cases}", broken >= 0.8 * cases,
    )  # fmt: skip


# ---- (d) this machine ----------------------------------------------------------------------------------------------

MODEL = "smollm2-135m"
EDGES = Buckets((32, 128, 256, 512), (16, 48, 96))
QUICK_EDGES = Buckets((64, 256), (16, 48))


def real_types(context: ProofContext) -> dict[str, tuple[float, Here]]:
    """Instances that this machine can be cut in, with prices: by threads and by exactness."""
    from headway.llm.language_model import LanguageModel

    model = context.load(context.model or MODEL)
    if not isinstance(model, LanguageModel):
        raise BadInput(f"{model.name} is no language model", f"prove {SYSTEM.slug} on {MODEL} or an LLM of your own")
    weights: Any = system("int8")
    int8 = weights.apply(model, weights.settings(), Context(context.target, threads=context.threads))
    wanted = {
        "1 thread, int8": (1.0, int8, 1),
        "2 threads, int8": (1.9, int8, 2),
        "1 thread, exact": (1.2, model.with_runtime("exact"), 1),
    }
    found = {}
    for name, (price, made, threads) in wanted.items():
        here = Here.measured(made, threads, kv_bytes=64e6, max_seqs=32, progress=context.progress, use=SYSTEM.slug)
        found[name] = price, here
    return found


def real(evidence: Evidence, context: ProofContext) -> None:
    types = real_types(context)
    buckets = QUICK_EDGES if context.quick else EDGES
    demand = Demand(buckets, np.full(buckets.shape, 1 / np.prod(buckets.shape)), 1.0)
    sizes = tuple(np.meshgrid(np.array(buckets.in_edges, float), np.array(buckets.out_edges, float), indexing="ij"))
    slowest = max(here.cost.linear(1) for _, here in types.values())
    slo = SLO(tpot_s=4 * slowest, quantile=0.9)
    settings = MelangeSettings(requests=60, seconds=10.0)
    load = LoadRun(context.seed, 24 if context.quick else 40, 4.0 if context.quick else 6.0)
    profiled, held, broke, cells = [], 0, 0, 0
    for name, (price, here) in types.items():
        guess = simulated_table(
            here.machine(name, scheduler, slo), demand, sizes, settings, context.progress, context.seed
        )  # type: ignore[arg-type]
        values = measured_table(here, guess, demand, sizes, slo, load, 0.1, context.progress)  # type: ignore[arg-type]
        profiled.append(Profiled(name, price, None, values, here.machine(name, scheduler, slo)))
        for row, column in np.argwhere(values > 0):
            prompt, output = buckets.in_edges[row], buckets.out_edges[column]
            for factor in (0.9, 1.3):
                trace = load.fixed(prompt, output, factor * float(values[row, column]))
                fine = sustained(here.run(scheduler(), trace, slo, seed=context.seed).outcome, slo)
                held += factor == 0.9 and fine
                broke += factor == 1.3 and not fine
            cells += 1
    plan = plan_fleet(demand, profiled, MelangeSettings())
    shown = ", ".join(f"{n} x {kind.name}" for n, kind in zip(plan.allocation.counts, profiled, strict=True) if n)
    evidence.notes.append(f"here: {shown} for 1 request/s at {plan.allocation.cost:.2f}")
    evidence.bar(
        "here: the limit held at 0.9 of the tabulated rate",
        "SLO met",
        "in every cell",
        f"{held} of {cells}",
        held == cells,
    )
    evidence.bar(
        "here: the limit broken at 1.3 of the tabulated rate", "tight", "in >= 80 % of the cells",
        f"{broke} of {cells}", broke >= 0.8 * cells,
    )  # fmt: skip
    additivity(evidence, context, profiled[0], types[profiled[0].name][1], buckets, slo, load)


def additivity(
    evidence: Evidence, context: ProofContext, kind: Profiled, here: Here, buckets: Buckets, slo: SLO, load: LoadRun
) -> None:
    """Two sizes at half an instance's load each: the rate that one instance really sustains over the planned one."""
    from headway.serving.capacity import capacity

    used = np.argwhere(kind.throughput > 0)
    (r0, c0), (r1, c1) = used[0], used[-1]
    first, second = 0.5 * kind.throughput[r0, c0], 0.5 * kind.throughput[r1, c1]
    total = float(first + second)

    def trace(rate: float) -> Trace:
        one = load.fixed(buckets.in_edges[r0], buckets.out_edges[c0], rate)
        which = np.random.default_rng(context.seed).random(len(one)) < first / total
        prompt = np.where(which, one.prompt, buckets.in_edges[r1])
        return Trace(one.arrival, prompt, np.where(which, one.output, buckets.out_edges[c1]))

    found = capacity(
        lambda rate: here.run(scheduler(), trace(rate), slo, seed=context.seed).outcome,
        slo, total, tolerance=0.08, held=sustained, most_runs=8,
    )  # fmt: skip
    error = abs(found.rate / total - 1)
    evidence.bar(
        "here: two sizes at half a load each, the rate held over the planned one", "additive (checked by the authors)",
        "within 15 %", f"{error:.1%} ({found.rate:.2f} against {total:.2f} requests/s)", error <= 0.15,
    )  # fmt: skip
