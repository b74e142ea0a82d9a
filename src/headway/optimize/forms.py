"""Kernel rates for predictions: every weight form a search may use is timed once on this machine, then remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from headway.core.model import Model
from headway.core.progress import Progress
from headway.core.target import Target
from headway.core.weight import Weight
from headway.hardware.attention import AttentionShape, measure_attention, native_steps
from headway.hardware.calibrate import Make, calibrate
from headway.hardware.predict import KV_BYTES
from headway.hardware.probe import remember
from headway.kernels import cpu

SHAPES = 4
"""Shapes of a model that one form is timed on: its most frequent ones."""


def calibrated(target: Target, held: Sequence[Mapping[str, Weight]], threads: int, progress: Progress) -> Target:
    """The target with the rate of every form in `held` (site -> weight, one mapping a choice).

    A rate that is known already is kept; a new one is remembered for the next search.
    """
    isa = cpu.isa()
    before = target
    for weights in held:
        for form in sorted({(weight.form, round(weight.bits_per_weight, 1)) for weight in weights.values()}):
            mine = [w for w in weights.values() if (w.form, round(w.bits_per_weight, 1)) == form]
            shapes = [shape for shape, _ in Counter(weight.shape for weight in mine).most_common(SHAPES)]
            target = calibrate(target, [_maker(mine)], shapes, threads=threads, isa=isa, progress=progress)
    if target is not before:
        remember(target)
    return target


def with_attention(target: Target, models: Sequence[Model], threads: int, progress: Progress) -> Target:
    """The target with the rate of attention over the keys and values that language models among `models` keep."""
    before = target
    for model in models:
        if model.task != "language":
            continue
        kv, arch = model.kv, model.architecture  # type: ignore[attr-defined]
        if any(rate.form == f"kv:{kv}" for rate in target.kernels):
            continue
        shape = AttentionShape(arch.heads, arch.kv_heads, arch.head_dim)
        with progress.task(f"calibrating attention, {kv}"):
            steps = native_steps(shape, kv=kv, threads=threads)
            rate = measure_attention(
                steps, shape, KV_BYTES[kv], target, form=f"kv:{kv}", threads=threads, isa=cpu.isa()
            )
        target = target.with_kernels([rate])
    if target is not before:
        remember(target)
    return target


def _maker(weights: Sequence[Weight]) -> Make:
    """Gives existing weights of the shape asked for, another one for each seed."""

    def make(out_features: int, in_features: int, seed: int) -> Weight:
        fitting = [weight for weight in weights if weight.shape == (out_features, in_features)]
        return fitting[seed % len(fitting)]

    return make
