"""`bipolar`: a matrix to odd multiples of one scale per group, the grid of bipolar-INT (arXiv 2409.17870).

    value = scale V,   V = 2u - (2^bits - 1) odd,   u = clamp(round((w / scale + 2^bits - 1) / 2), 0, 2^bits - 1)

There is no zero and no offset. Scales are float16 unless that loses more than rounding. With H, the second moment of
the inputs, columns are rounded with error feedback, and scales and codes then improved in turn (`quantizers_gptq`),
which the papers have not; without, each weight goes to its nearest level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.core.errors import BadInput
from headway.core.weight import F32
from headway.llm.weights.base import Array
from headway.llm.weights.grouped import expand, group_count
from headway.llm.weights.quantizers import U8, checked, grouped, stored
from headway.llm.weights.quantizers_gptq import DAMPING, damped, feedback

CLIPS = 16
NARROWEST = {1: 0.0, 2: 0.3, 3: 0.4, 4: 0.5}
"""The search tries this many shares of a group's largest weight, from 1 down to the narrowest (0.6 from 5 bits on)."""
ROUNDS = 1
"""Rounds of improvement after error feedback: all scales of a row, then each code in turn."""

_ROWS = 64


@dataclass(frozen=True)
class BipolarCodes:
    """Codes uint8 (out, in) below 2^bits, and the scale of every group, (out, groups)."""

    bits: int
    codes: U8
    scale: Array
    group_size: int

    def dequantize(self) -> F32:
        top = np.float32(2**self.bits - 1)
        return (2 * self.codes.astype(np.float32) - top) * expand(self.scale, self.codes.shape[1], self.group_size)


def bipolar(
    w: F32,
    bits: int,
    group_size: int,
    *,
    hessian: F32 | None = None,
    clip: bool = True,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
    threads: int = 1,
) -> BipolarCodes:
    """w: (out, in); hessian: (in, in) or none. group_size 0: one scale per row.

    clip: the scale of least squared error (weighted by H's diagonal), else that of the largest weight.
    Raises `BadInput` for weights or an H that are not finite.
    """
    columns = int(w.shape[1])
    group = group_size or columns
    w = checked(w, bits, group)
    if hessian is None:
        scale = _kept(fit_scale(w, bits, group, None, clip))
        return BipolarCodes(bits, nearest(w, scale, bits, group), scale, group)
    if hessian.shape != (columns, columns):
        raise BadInput(f"H of shape {hessian.shape} does not fit {columns} inputs", "give (in_features, in_features)")
    from headway.kernels.cpu import _cpu

    pass_ = feedback(hessian, damping)
    scale = _kept(fit_scale(w, bits, group, np.diagonal(hessian), clip))
    top = 2**bits - 1
    step = np.ascontiguousarray(scale, np.float32)
    codes: U8 = _cpu.quantise_sweep(w, pass_.v, pass_.order, 2 * step, -top * step, None, group, top, threads)
    if rounds:
        half = scale.dtype == np.float16
        codes, wide, _ = _cpu.quantise_refine(
            w, codes, damped(hessian, damping), 2 * step, -top * step, group, top, rounds, half, threads, centred=True
        )
        scale = _kept(wide / 2) if half else wide / 2
    return BipolarCodes(bits, codes, scale, group)


def nearest(w: F32, scale: Array, bits: int, group: int) -> U8:
    """The nearest codes, (out, in)."""
    top = np.float32(2**bits - 1)
    codes = np.empty(w.shape, np.uint8)
    for rows in _panels(len(w)):
        level = w[rows] / expand(scale[rows], w.shape[1], group)
        codes[rows] = np.rint(np.clip((level + top) / 2, 0, top))
    return codes


def fit_scale(w: F32, bits: int, group: int, importance: F32 | None, clip: bool) -> F32:
    """The scale of every group, float32 (out, groups), errors weighted by importance (in,)."""
    columns, top = w.shape[1], np.float32(2**bits - 1)
    groups = group_count(columns, group)
    weights = np.ones(columns, np.float32) if importance is None else np.ascontiguousarray(importance, np.float32)
    mean = float(weights.mean())
    weights = np.maximum(weights / np.float32(mean), np.float32(1e-6)) if mean > 0 else np.ones_like(weights)
    padded = np.zeros((1, groups * group), np.float32)
    padded[0, :columns] = weights
    heavy = padded.reshape(groups, group)
    scale = np.empty((len(w), groups), np.float32)
    for rows in _panels(len(w)):
        blocks = grouped(w[rows], group)
        size = np.abs(blocks)
        widest = size.max(-1) / top
        if bits == 1 and clip:
            scale[rows] = (size * heavy).sum(-1) / heavy.sum(-1)
        elif clip:
            scale[rows] = _searched(size, heavy, widest, bits, top)
        else:
            scale[rows] = widest
    return np.where(scale > 0, scale, np.float32(2.0**-14))


def _searched(size: F32, heavy: F32, widest: F32, bits: int, top: np.float32) -> F32:
    """size: |w| (rows, groups, group); levels are alike on both sides of 0, so sizes are enough."""
    best, least = widest, np.full(widest.shape, np.inf, np.float32)
    narrowest = NARROWEST.get(bits, 0.6)
    for k in range(CLIPS):
        scale = widest * np.float32(1 - (1 - narrowest) * k / (CLIPS - 1))
        for settle in range(2):
            safe = np.maximum(scale, np.float32(1e-30))[..., None]
            level = np.minimum(2 * np.floor(size / (2 * safe)) + 1, top)
            error = size - level * safe
            lost = np.einsum("rgk,rgk,gk->rg", error, error, heavy)
            better = lost < least
            best, least = np.where(better, scale, best), np.where(better, lost, least)
            if settle == 0:
                scale = np.einsum("rgk,rgk,gk->rg", size, level, heavy) / np.einsum(
                    "rgk,rgk,gk->rg", level, level, heavy
                )
    return best


def _kept(scale: F32) -> Array:
    return stored(scale, np.zeros_like(scale), 1, "f16").scale


def _panels(rows: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, rows, _ROWS)]
