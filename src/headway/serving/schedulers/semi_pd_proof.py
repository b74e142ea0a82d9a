"""The proof of `semi-pd`: both lanes of a real model at work, its controller in the simulator, and the paper's machine.

The paper's machine is an A100 with Llama3-8B by its published figures, and one overhead of an iteration, fitted so that
prefill-first scheduling serves 9.5 requests/s within the paper's tight limits (its figure 15), for all systems.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.hardware.iteration_time import Load
from headway.serving.capacity import attainment
from headway.serving.devices import Roofline
from headway.serving.engine import Engine
from headway.serving.lane_runs import LaneStand, Work, goodput, lognormal, page_walk, quantiles
from headway.serving.outcome import Outcome
from headway.serving.proof_runs import Stand, greedy_equal
from headway.serving.request import Request
from headway.serving.schedulers.base import SLO, Limits, Scheduler
from headway.serving.schedulers.sarathi_serve import Sarathi, SarathiSettings
from headway.serving.schedulers.semi_pd import SYSTEM, SemiPD, SemiPDSettings
from headway.serving.schedulers.semi_pd_control import fit
from headway.serving.schedulers.two_lanes import DECODE, PREFILL
from headway.serving.schedulers.vllm_like import PrefillFirst, VllmLikeSettings
from headway.serving.simulator import Setting, simulate
from headway.serving.trace import Trace, generate

BASELINE = "prefill-first (vLLM-like) and chunked (Sarathi-like) scheduling on the same engine and the same machine"


def prove(context: ProofContext) -> Evidence:
    """Raises `BadInput` for a model that is no language model."""
    stand = Stand.of(context, SYSTEM.slug)
    evidence = context.begin(SYSTEM.slug, stand.runtime.threads, stand.model)
    lanes = LaneStand(stand)
    isolation(evidence, stand)
    overlap(evidence, lanes, context)
    exact(evidence, stand, context)
    switch(evidence, lanes, context)
    controller(evidence, context)
    paper(evidence, context)
    return evidence


def semi(**settings: object) -> SemiPD:
    return SemiPD(SemiPDSettings(**settings))  # type: ignore[arg-type]


def halves() -> SemiPD:
    return semi(x0=50.0, y0=50.0, dynamic=False)


def vllm() -> Scheduler:
    return PrefillFirst(VllmLikeSettings())


def chunked(budget: int) -> Scheduler:
    return Sarathi(SarathiSettings(token_budget=budget))


# ---- 1: answers beside a long prompt --------------------------------------------------------------------------------


def isolation(evidence: Evidence, stand: Stand) -> None:
    single = replace(stand, model=stand.model.with_runtime("native", 1))
    single.__dict__["cost"] = stand.cost  # of no matter to prefill-first
    alone = quantiles(gaps(single.engine(vllm()), stand, long=0))[1]
    beside = quantiles(gaps(stand.engine(halves()), stand, long=1500))[1]
    stalled = max(gaps(stand.engine(vllm()), stand, long=1500))
    factor = beside / alone
    evidence.bar(
        "isolation: P99 gap of 4 answers beside a prompt of 1,500, over alone on one core",
        "prefill does not stall decode", "<= 1.8",
        f"{factor:.2f} ({beside * 1e3:.1f} against {alone * 1e3:.1f} ms)", factor <= 1.8,
    )  # fmt: skip
    worst = stalled / alone
    evidence.bar(
        "isolation: the same under prefill-first on all cores, longest gap", "stalls for the whole prompt", ">= 20",
        f"{worst:.1f} ({stalled * 1e3:.0f} ms)", worst >= 20,
    )  # fmt: skip


def gaps(engine: Engine, stand: Stand, long: int) -> list[float]:
    """Seconds between tokens of 4 requests, while a prompt of `long` tokens is read (0: 150 tokens each)."""
    vocab, random = stand.model.architecture.vocab, np.random.default_rng(stand.context.seed)
    ids = [engine.submit(Request(random.integers(0, vocab, 64).tolist(), 1500, ignore_end=True)) for _ in range(4)]
    last: dict[int, float] = {}
    found: list[float] = []
    prompt, settled = -1, 0
    waited = set(ids)  # answers that got no token since the prompt was read
    try:
        while waited and len(found) < 4000:
            events = engine.step()
            now = engine.clock()
            settled += len(last) == 4
            if settled == 10:
                last = dict.fromkeys(last, now)
                prompt = (
                    engine.submit(Request(random.integers(0, vocab, long).tolist(), 1, ignore_end=True)) if long else 0
                )
            for event in events:
                if event.id in last and settled > 10:
                    found.append(now - last[event.id])
                last[event.id] = now
            if prompt not in last and not (prompt == 0 and len(found) >= 600):
                continue
            waited -= {event.id for event in events if event.id != prompt}
        for id in ids:
            engine.cancel(id)
        while engine.busy:
            engine.step()
    finally:
        engine.close()
    return found


# ---- 2: both at once ------------------------------------------------------------------------------------------------


def overlap(evidence: Evidence, lanes: LaneStand, context: ProofContext) -> None:
    pair = lanes.pair
    prompt, answers = Work(256, 0, 256), Work(0, 4, 300)
    seconds, rounds = (1.5, 3) if context.quick else (3.0, 5)
    pair.lanes.share(0.5)
    sums = []
    shown = []
    for _ in range(rounds):
        alone = [float(np.mean(pair.alone(work, seconds / 2))) for work in (prompt, answers)]
        both = [float(np.mean(times)) for times in pair.both(prompt, answers, seconds)]
        sums.append(sum(a / b for a, b in zip(alone, both, strict=True)))
        shown.append([work.tokens / b for work, b in zip((prompt, answers), both, strict=True)])
    progress = float(np.median(sums))
    rates = np.median(shown, axis=0)
    evidence.bar(
        "overlap: progress of both lanes at once, each over its rate on one core", "two phases at the same time",
        ">= 1.6", f"{progress:.2f} (prompts {rates[0]:.0f} tok/s, answers {rates[1]:.0f} tok/s; 2 is the limit)",
        progress >= 1.6,
    )  # fmt: skip


# ---- 3: exactness ---------------------------------------------------------------------------------------------------


def exact(evidence: Evidence, stand: Stand, context: ProofContext) -> None:
    count = 12 if context.quick else 40
    trace = generate("azure-conv", count, 8.0, seed=context.seed).scaled(0.25, 600, 48)
    runs = {
        "prefill-first": stand.run(vllm(), trace),
        "semi-pd": stand.run(semi(window_iters=5, ttft_slo_ms=50.0, tpot_slo_ms=500.0), trace),
        "halves": stand.run(halves(), trace),
    }
    requests, differ = greedy_equal(stand.model, runs, "prefill-first")
    evidence.bar(
        "greedy tokens on two lanes against one", "unchanged", "all equal",
        f"{', '.join(differ[:3]) or 'equal'}: {requests} requests", not differ,
    )  # fmt: skip
    steps = 100_000 if context.quick else 1_000_000
    served, wrong = page_walk(semi(), steps, context.seed)
    evidence.bar(
        "pages over random arrivals, cancellations and completions of both lanes", "one pool, one owner",
        "none lost, none owned twice", f"{wrong[0] if wrong else 'none'} in {steps:,} steps, {served:,} requests",
        not wrong,
    )  # fmt: skip


# ---- 4: the switch --------------------------------------------------------------------------------------------------


def switch(evidence: Evidence, lanes: LaneStand, context: ProofContext) -> None:
    """Answers' steps around a change of the share, over the slower side of their neighbours."""
    pair = lanes.pair
    switches = 12 if context.quick else 40
    every = 12
    count = 0
    calls: list[float] = []
    marks: list[int] = []
    times: list[float] = []
    shares = (0.5, 0.4)

    def answers(session_step: Callable[[], float]) -> Callable[[], float]:
        def step() -> float:
            nonlocal count
            count += 1
            if count % every == 0:
                begin = time.perf_counter()
                pair.lanes.share(shares[(count // every) % 2])
                calls.append(time.perf_counter() - begin)
                marks.append(len(times))
            seconds = session_step()
            times.append(seconds)
            return seconds

        return step

    pair.lanes.share(shares[0])
    pair.both(Work(64, 0, 128), Work(0, 4, 300), 0.2 + 0.03 * every * switches, answers)
    half = every // 2
    ratios, quiet = [], []
    for mark in marks:
        if mark + half >= len(times) or mark < half:
            continue
        around = max(float(np.median(times[mark - half : mark])), float(np.median(times[mark + 1 : mark + half])))
        ratios.append(times[mark] / around)
        still = mark - half // 2  # a step in which nothing changed, beside its neighbours
        quiet.append(times[still] / float(np.median([*times[mark - half : still], *times[still + 1 : mark]])))
    ratio, floor = float(np.median(ratios)), float(np.median(quiet))
    evidence.bar(
        "switch: an iteration in which the share changes, over its slower neighbours", "no stall", "<= 1.2 (median)",
        f"{ratio:.2f} of {len(ratios)} (one without a change: {floor:.2f}; the call: {np.median(calls) * 1e6:.1f} us)",
        ratio <= 1.2 and len(ratios) >= 3,
    )  # fmt: skip


# ---- the paper's machine --------------------------------------------------------------------------------------------

A100 = Roofline(
    flops=312e12 * 0.55, bandwidth=2.0e12, weight_bytes=16e9, token_flops=16e9, pair_flops=4 * 4096 * 32,
    kv_bytes=131072.0,
)  # fmt: skip
"""With Llama3-8B: 32 layers of 4,096, 8 key heads of 128."""
A100_PAGES = int((0.9 * 80e9 - 16e9) / 131072 / 16)
TIGHT = SLO(ttft_s=0.3, tbt_s=0.15, quantile=0.9)
"""The paper's limits for ShareGPT."""
PROMPTS, OUTPUTS = (137.0, 1.1), (150.0, 0.76)
"""Median and sigma: means of 250 (the paper's) and 200 tokens (DistServe's ShareGPT)."""
TARGET = 9.5
"""Requests/s at which the paper's vLLM leaves 90 % attainment, read off its figure 15."""


def on(device: Roofline, scheduler: Scheduler, trace: Trace, slo: SLO, watch: object = None) -> Outcome:
    setting = Setting(A100_PAGES, 16, Limits(max_seqs=512), slo)
    return simulate(trace, scheduler, device, setting, cost=device.cost(), watch=watch)  # type: ignore[arg-type]


def with_overhead(trace: Trace) -> Roofline:
    """The overhead of an iteration at which prefill-first leaves 90 % attainment at `TARGET`."""
    low, high = 0.0, 0.1
    for _ in range(7):
        middle = (low + high) / 2
        device = replace(A100, overhead_s=middle)
        held = attainment(on(device, vllm(), trace.at_rate(TARGET), TIGHT), TIGHT) >= TIGHT.quantile
        low, high = (middle, high) if held else (low, middle)
    return replace(A100, overhead_s=low)


def paper(evidence: Evidence, context: ProofContext) -> None:
    count = 600 if context.quick else 3000
    trace = lognormal(count, PROMPTS, OUTPUTS, 4096, context.seed)
    with context.progress.task("the paper's machine"):
        device = with_overhead(trace)
        rivals: dict[str, Callable[[], Scheduler]] = {
            "vllm": vllm,
            "chunked 1,024": lambda: chunked(1024),
            "semi-pd": semi,
            "static (100, 100)": lambda: semi(x0=100.0, y0=100.0, dynamic=False),
        }
        rates = {
            name: goodput(lambda r, m=make: on(device, m(), trace.at_rate(r), TIGHT), TIGHT, TARGET)  # type: ignore[misc]
            for name, make in rivals.items()
        }
    ours = rates["semi-pd"]
    evidence.notes.append(
        f"the paper's machine: {device.overhead_s * 1e3:.1f} ms of overhead; "
        + ", ".join(f"{name} {rate:.2f}/s" for name, rate in rates.items())
    )
    for name, figure, low, high in (("vllm", "1.72x", 1.3, 2.2), ("chunked 1,024", "1.55x", 1.2, 2.0)):
        ratio = ours / rates[name]
        evidence.bar(
            f"the paper's machine: rate at 90 % attainment over {name}", figure, f"{low} to {high}", f"{ratio:.2f}",
            low <= ratio <= high,
        )  # fmt: skip
    forms(evidence, device, context)


def forms(evidence: Evidence, device: Roofline, context: ProofContext) -> None:
    """The paper's two formulas: a sweep of x in the simulator, and of y over an iteration beside a prompt."""
    trace = lognormal(500 if context.quick else 2000, (250.0, 0.2), (60.0, 0.3), 2048, context.seed + 1)
    quick = replace(device, overhead_s=0.0)
    shares = np.arange(20, 96, 5)
    rate = 0.15 / (A100.token_flops * 255 / A100.flops)  # prompts of 15 % of the machine
    ttft, tpot = [], []
    both = {PREFILL: Load(1024, 1024 * 512.0, 0, 0, 4, 4), DECODE: Load(64, 0.0, 64, 64 * 350, 64, 64)}
    for x in shares.tolist():
        outcome = on(quick, semi(x0=float(x), y0=100.0 - x, dynamic=False), trace.at_rate(rate), TIGHT)
        ttft.append(float(np.nanmean(outcome.ttft)))
        tpot.append(device.seconds(both, {PREFILL: x / 100.0, DECODE: 1.0 - x / 100.0})[DECODE])
    queue = max(
        r2([(1.0 / (x - load), t) for x, t in zip(shares, ttft, strict=True)]) for load in np.linspace(0, 19, 39)
    )
    line = r2([(1.0 / (100.0 - x), t) for x, t in zip(shares, tpot, strict=True)])
    evidence.bar("TTFT = a / (x - lambda) + b over a sweep of x", "R2 0.9953", ">= 0.98", f"{queue:.4f}", queue >= 0.98)
    evidence.bar("TPOT = a / y + b over a sweep of y", "R2 0.9955", ">= 0.98", f"{line:.4f}", line >= 0.98)


def r2(points: Sequence[tuple[float, float]]) -> float:
    """Of the best line with no negative part."""
    a, b = fit(points)
    values = np.array([t for _, t in points])
    left = sum((t - a * u - b) ** 2 for u, t in points)
    return 1.0 - left / float(((values - values.mean()) ** 2).sum())


# ---- 5: the controller ----------------------------------------------------------------------------------------------

STATIC = ((100.0, 100.0), (50.0, 50.0), (80.0, 100.0))


def controller(evidence: Evidence, context: ProofContext) -> None:
    device = replace(A100, overhead_s=0.01)
    slo = SLO(ttft_s=0.6, tbt_s=0.06, quantile=0.9)
    half = 300 if context.quick else 1000
    # Prompts that double in mid-run.
    first = lognormal(2 * half, (300.0, 0.5), (120.0, 0.5), 8192, context.seed).at_rate(7.0)
    prompt = first.prompt.copy()
    prompt[half:] *= 2
    trace = Trace(first.arrival, prompt, first.output)
    made = semi(window_iters=50)
    closed: list[float] = []

    def watch(now: float, _: object) -> None:
        if len(made.windows) > len(closed):
            closed.append(now)

    outcome = on(device, made, trace, slo, watch)
    change = float(trace.arrival[half])
    after = [at for at in closed if at > change]
    late = trace.arrival >= after[min(3, len(after) - 1)]
    between = (outcome.finish - outcome.ttft) / np.maximum(outcome.generated - 1, 1)
    met = (outcome.ttft <= slo.ttft_s) & (between <= slo.tbt_s)
    share = float(met[late].mean())
    evidence.bar(
        "controller: attainment from 3 windows after prompts doubled", "follows the load", ">= 0.9",
        f"{share:.3f} (before {met[:half].mean():.3f}; split now {made.current.x:.0f}, {made.current.y:.0f})",
        share >= 0.9,
    )  # fmt: skip
    # Rates that one split or the other would need.
    phases = {
        "prompts": lognormal(2 * half, (900.0, 0.4), (30.0, 0.4), 8192, context.seed),
        "answers": lognormal(2 * half, (60.0, 0.4), (250.0, 0.4), 8192, context.seed),
    }
    rates: dict[tuple[float, float], float] = {}
    for split in (*STATIC, (0.0, 0.0)):
        dynamic = split == (0.0, 0.0)
        each = []
        for phase in phases.values():

            def run(
                rate: float, phase: Trace = phase, split: tuple[float, float] = split, d: bool = dynamic
            ) -> Outcome:
                scheduler = semi() if d else semi(x0=split[0], y0=split[1], dynamic=False)
                return on(device, scheduler, phase.at_rate(rate), slo)

            with context.progress.task(f"rates of {'the controller' if dynamic else split}"):
                each.append(goodput(run, slo, 12.0, 0.04, 7))
        rates[split] = float(np.mean(each))
    best = max(STATIC, key=rates.__getitem__)
    gain = rates[(0.0, 0.0)] / rates[best]
    shown = ", ".join(f"{'dynamic' if s == (0.0, 0.0) else tuple(map(int, s))} {r:.1f}/s" for s, r in rates.items())
    evidence.bar(
        "controller: rate over the best static split, mean of a phase of prompts and one of answers",
        "1.11x static (100, 100)", ">= 1.1", f"{gain:.2f} ({shown})", gain >= 1.1,
    )  # fmt: skip
