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
from headway.hardware.probe import remember
from headway.kernels import cpu

SHAPES = 4
"""Shapes of a model that one form is timed on: its most frequent ones."""


def calibrated(
    target: Target, model: Model, held: Sequence[Mapping[str, Weight]], threads: int, progress: Progress
) -> Target:
    """The target with the rate of every form in `held` (site -> weight, one mapping a choice), and of attention.

    A rate that is known already is kept; a new one is remembered for the next search.
    """
    isa = cpu.isa()
    before = target
    for weights in held:
        for form in sorted({(weight.form, round(weight.bits_per_weight, 1)) for weight in weights.values()}):
            mine = [w for w in weights.values() if (w.form, round(w.bits_per_weight, 1)) == form]
            shapes = [shape for shape, _ in Counter(weight.shape for weight in mine).most_common(SHAPES)]
            target = calibrate(target, [_maker(mine)], shapes, threads=threads, isa=isa, progress=progress)
    if model.task == "language" and not any(rate.form == "kv:f16" for rate in target.kernels):
        architecture = model.architecture  # type: ignore[attr-defined]
        shape = AttentionShape(architecture.heads, architecture.kv_heads, architecture.head_dim)
        with progress.task("calibrating attention"):
            steps = native_steps(shape, kv="f16", threads=threads)
            rate = measure_attention(steps, shape, 2.0, target, form="kv:f16", threads=threads, isa=isa)
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
