"""A made-up run with everything a report can show, for the report's tests; nothing in it was measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from headway.core.registry import systems
from headway.hardware.iteration_time import IterationTime
from headway.optimize.report.run import Bar, Limit, Ratio, Run, Samples, Shown, SiteBits
from headway.serving.load_run import Watch, record
from headway.serving.schedulers.base import SLO
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import generate

WINNER = 'lut-gemm(bits=4, group_size=64, only=["layers.*.attention.*", … +9])'
LOSS = {8: 0.0004, 6: 0.003, 5: 0.009, 4: 0.032, 3: 0.21}


def example(*, met: bool = True, subject: str = "smollm2-135m", winner: str = WINNER) -> Run:
    """An `optimize` run with 17 candidates, three arms, two ratios and 211 sites."""
    chance = random.Random(1)
    quality = 0.9816 if met else 0.962
    candidates = _with_front([_original(), *_uniform(chance), _winner(winner, quality)])
    return Run(
        id="r1",
        kind="optimize",
        subject=subject,
        met=met,
        made_at="2026-11-24T17:30:00Z",
        command='headway optimize smollm2-135m --budget "latency<=6ms/token, quality>=0.98" --minimize size -o out',
        apply_command="headway apply out/recipe.toml smollm2-135m -o again",
        recipe_toml='[[system]]\nname = "lut-gemm"\nbits = 4\ngroup_size = 64\n',
        limits=(Limit("tpot_s", "<=", 0.006, 0.00502), Limit("quality", ">=", 0.98, quality)),
        objective="size_bytes",
        candidates=tuple(candidates),
        ratios=(
            Ratio("tpot_s", "original", "winner", 0.276, 0.272, 0.281, 40, 0.013, "faster"),
            Ratio("ttft_s", "original", "winner", 0.981, 0.965, 1.004, 20, 0.034, "none"),
        ),
        samples=tuple(_samples(chance)),
        sites=tuple(_sites()),
        workload={"text": "held-out windows of 512 tokens", "context": 512},
        target={"name": "reference", "cores": 2, "isa": "avx2, avx512, vnni"},
        versions={"headway": "0.1.0", "python": "3.11.7"},
        seed=0,
        threads=2,
        notes=("2 sites were left as they were: their rows are not a multiple of 32.",),
    )


def proof(*, met: bool = True) -> Run:
    """A `prove` run with two bars."""
    bars = (
        Bar("time against dequantise-then-dot, in L2", "0.48", "<= 0.70", "0.61", True),
        Bar("perplexity ratio, 3 bits, groups of 64", "", "<= 1.30", "1.29" if met else "1.41", met),
    )
    return Run(
        id="r2",
        kind="prove",
        subject="lut-gemm",
        met=met,
        claim="2.1x lower token latency",
        paper="ICLR 2024, arXiv 2206.09557",
        compared_with="the same weights through a dequantising kernel",
        bars=bars,
        ratios=(Ratio("tpot_s", "dequantise", "look-up", 0.61, 0.59, 0.64, 30, None, "faster"),),
        seed=0,
    )


def loaded(*, limits: bool = True, rates: tuple[float, ...] = (0.4, 0.8, 1.2)) -> Run:
    """A load run; what stands for the engine is a simulator whose batches take a little longer, unevenly."""
    slo = SLO(ttft_s=2.0, tbt_s=0.2) if limits else SLO()
    loads = []
    for rate in rates:
        trace = generate("azure-conv", 48, rate, seed=3).scaled(0.5, 1500, 96).at_rate(rate)
        for by, slower in (("engine", 1.12), ("simulator", 1.0)):
            cost = IterationTime((0, 8, 64), (0.012 * slower, 0.014 * slower, 0.06 * slower**2), 1e-7, 1e-7, 1e-5, 1e-5)
            watch = Watch()
            system: Any = systems()["sarathi-serve"].load()
            scheduler = system.make(system.settings())
            outcome = simulate(trace, scheduler, OneLane(cost), Setting(400, 64, slo=slo), watch=watch)
            loads.append(record(by, outcome, rate, 400, slo, watch))
    held = all(one.attainment is not None and one.attainment >= slo.quantile for one in loads)
    return Run(
        id="r1",
        kind="bench",
        subject="smollm2-135m",
        met=held if limits else None,
        command="headway bench smollm2-135m --trace azure-conv --budget 'ttft<=2s, latency<=200ms/token'",
        loads=tuple(loads),
        share=slo.quantile if limits else None,
        workload={"trace": "azure-conv", "limits": "ttft<=2s, latency<=200ms/token"},
        seed=0,
        threads=2,
    )


def _original() -> Shown:
    measured = {"tpot_s": 0.0182, "ttft_s": 0.41, "size_bytes": 538e6, "memory_bytes": 611e6, "quality": 1.0, "kl": 0.0}
    predicted = {"tpot_s": 0.0175, "size_bytes": 538e6, "memory_bytes": 600e6}
    return Shown("c0", "(unmodified)", "baseline", measured, predicted)


def _uniform(chance: random.Random) -> Iterator[Shown]:
    for number, (bits, group) in enumerate(((b, g) for b in LOSS for g in (32, 64, 128)), 1):
        size = 135e6 * (bits + 32 / group) / 8 * 1.02
        quality = 1 - LOSS[bits] * (1 + 0.35 * (group / 64 - 1))
        seconds = 0.0012 + size / 1.9e10 * chance.uniform(0.96, 1.1)
        measured = {
            "tpot_s": seconds,
            "ttft_s": 0.2 * chance.uniform(0.9, 1.1),
            "size_bytes": size,
            "memory_bytes": size + 62e6,
            "quality": quality,
            "kl": (1 - quality) * 0.6,
        }
        predicted = {"tpot_s": seconds * chance.uniform(0.9, 1.14), "size_bytes": size, "memory_bytes": size + 60e6}
        yield Shown(f"c{number}", f"lut-gemm(bits={bits}, group_size={group})", "measured", measured, predicted)


def _winner(recipe: str, quality: float) -> Shown:
    measured = {
        "tpot_s": 0.00502,
        "ttft_s": 0.205,
        "size_bytes": 71.2e6,
        "memory_bytes": 131e6,
        "quality": quality,
        "kl": 0.0141,
    }
    return Shown("cw", recipe, "winner", measured, {"tpot_s": 0.0049, "size_bytes": 71.3e6, "memory_bytes": 128e6})


def _with_front(candidates: list[Shown]) -> list[Shown]:
    def beaten(one: Shown) -> bool:
        costs = ("tpot_s", "size_bytes", "memory_bytes")
        return any(
            other is not one
            and all(other.measured[key] <= one.measured[key] for key in costs)
            and other.measured["quality"] >= one.measured["quality"]
            for other in candidates
        )

    return [replace(one, role="front") if one.role == "measured" and not beaten(one) else one for one in candidates]


def _samples(chance: random.Random) -> Iterator[Samples]:
    for metric, rounds, times in (("tpot_s", 40, (0.0182, 0.0183, 0.005)), ("ttft_s", 20, (0.41, 0.411, 0.4))):
        arms = zip(("original", "original again", "winner"), ("baseline", "again", "candidate"), times, strict=True)
        for arm, role, seconds in arms:
            values = (seconds * (1 + abs(chance.gauss(0, 0.02))) for _ in range(rounds))
            yield Samples(arm, metric, tuple(values), role)


def _sites() -> Iterator[SiteBits]:
    yield SiteBits("head", "head", "int8", 8.5, 30_081_024, 49152 * 576)
    shapes = {
        "attention.q": 576 * 576,
        "attention.k": 192 * 576,
        "attention.v": 192 * 576,
        "attention.o": 576 * 576,
        "mlp.gate": 1536 * 576,
        "mlp.up": 1536 * 576,
        "mlp.down": 576 * 1536,
    }
    for layer in range(30):
        for role, weights in shapes.items():
            bits = 8.5 if role == "mlp.down" and layer in (1, 2, 9, 11, 28) else 4.5 if layer % 4 else 3.5
            yield SiteBits(f"layers.{layer}.{role}", "linear", "bitplanes", bits, int(weights * bits / 8), weights)
