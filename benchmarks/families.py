"""Families of image networks through one runtime, torch (channels-last) and ONNX Runtime, interleaved in one run.

    python benchmarks/families.py [BATCH] [THREADS] [ROUNDS]

Prints a line for each network and each bar of the families' latency: whether the order that the papers claim holds, and
how the runtime stands beside its peers. Exit 1 when a bar is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from headway.core.measure import compare
from headway.core.statistics import Interval, median_ratio
from headway.optimize import api
from headway.optimize.bench_modules import inputs_of
from headway.optimize.engines import peers
from headway.optimize.engines.native_module import HeadwayModule

OURS = ("shvit(variant=s4)", "efficientmod(variant=s)", "patnet(variant=t2)")
THEIRS = ("timm:mobilevitv2_100", "timm:efficientformerv2_s2", "timm:fasternet_t2")
FASTER = (
    ("shvit(variant=s4)", "timm:mobilevitv2_100", 1.0),
    ("efficientmod(variant=s)", "timm:mobilevitv2_100", 1.0),
    ("efficientmod(variant=s)", "timm:efficientformerv2_s2", 1.0),
    ("patnet(variant=t2)", "timm:fasternet_t2", 1.0),
)
"""The first is faster, says its paper; the ratio of times must be below."""
OVER_TORCH, NOT_SLOWER = 1.2, 3
"""Times as fast as torch, on every network; networks of ours on which ONNX Runtime is not faster, beyond the noise."""


def main(batch: int = 1, threads: int = 1, rounds: int = 20) -> int:
    api.use_threads(threads)
    calls = {}
    for name in (*OURS, *THEIRS):
        model = api.load(name)
        inputs = inputs_of(model, None, batch, 0)
        for engine in (HeadwayModule(model), *peers(("torch", "onnxruntime"), model, threads)):
            calls[f"{name} {engine.name}"] = engine.repeat(inputs)
    timing = compare(calls, rounds=rounds, settle_s=0.05, aa=False)

    def ratio(over: str, under: str) -> Interval:
        return median_ratio(timing.samples[over], timing.samples[under])

    met: list[bool] = []

    def bar(what: str, found: Interval, holds: bool) -> None:
        met.append(holds)
        print(f"{'met   ' if holds else 'MISSED'} {what}: {found.text()}")

    level = 0
    for name in (*OURS, *THEIRS):
        times = ", ".join(f"{each} {1e3 * timing.median_s(f'{name} {each}'):.1f} ms" for each in _ENGINES)
        print(f"{name}: {times}")
    for name in (*OURS, *THEIRS):
        found = ratio(f"{name} torch", f"{name} headway")
        bar(f"{name} over torch, at least {OVER_TORCH}", found, found.value >= OVER_TORCH)
        beside = ratio(f"{name} onnxruntime", f"{name} headway")
        print(f"       {name} over onnxruntime: {beside.text()}")
        level += name in OURS and beside.high >= 1.0
    met.append(level >= NOT_SLOWER)
    verdict = "met   " if met[-1] else "MISSED"
    print(f"{verdict} not slower than onnxruntime on {level} of {len(OURS)} (at least {NOT_SLOWER})")
    for first, second, most in FASTER:
        found = ratio(f"{first} headway", f"{second} headway")
        bar(f"{first} over {second}, below {most}", found, found.value < most)
    return 0 if all(met) else 1


_ENGINES: Sequence[str] = ("headway", "torch", "onnxruntime")

if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
