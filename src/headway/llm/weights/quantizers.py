"""Affine quantisers: a float matrix to integer codes with a scale and a minimum per group of columns.

    value = code * scale + minimum,   code in 0 .. 2^bits - 1,   group k = columns k*group_size .. (k+1)*group_size - 1

How scale and minimum of a group are found (`grid`):
    range      its smallest and largest weight
    zero       the same range stretched to hold 0, minimum a whole multiple of the scale (integer zero point)
    mse        as zero, the range shrunk in steps of 1 % to the least sum |error|^2.4 (the search of GPTQ's code)
    weighted   clip search and least squares, errors weighted by the column's importance (diagonal of H)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.weight import F32, Weight
from headway.llm.weights.base import Array, finite
from headway.llm.weights.grouped import expand, group_count

U8 = npt.NDArray[np.uint8]
GridKind = Literal["range", "zero", "mse", "weighted"]
Floats = Literal["f16", "f32"]

CANDIDATES = 24
NARROWEST = 0.35
"""The clip search tries this many shares of a group's range, from 1 down to the narrowest."""

_ROWS = 64
"""Rows worked on together where numpy does the work: their temporaries stay in the cache."""


@dataclass(frozen=True)
class Grid:
    """Scale and minimum of every group, (out, groups), both float16 or both float32."""

    scale: Array
    minimum: Array
    group_size: int

    def codes(self, w: F32, bits: int) -> U8:
        """The nearest codes, (out, in)."""
        top = np.float32(2**bits - 1)
        codes = np.empty(w.shape, np.uint8)
        for rows in _panels(len(w)):
            scale = expand(self.scale[rows], w.shape[1], self.group_size)
            q = w[rows] - expand(self.minimum[rows], w.shape[1], self.group_size)
            q /= scale
            codes[rows] = np.rint(np.clip(q, 0, top, out=q), out=q)
        return codes


@dataclass(frozen=True)
class AffineCodes:
    """A quantised matrix: codes uint8 (out, in) below 2^bits and its grid."""

    bits: int
    codes: U8
    grid: Grid

    @property
    def scale(self) -> Array:
        return self.grid.scale

    @property
    def minimum(self) -> Array:
        return self.grid.minimum

    @property
    def group_size(self) -> int:
        return self.grid.group_size

    def dequantize(self) -> F32:
        """The exact float32 value, rounded twice: the product, then the sum."""
        value = self.codes.astype(np.float32)
        value *= expand(self.scale, value.shape[1], self.group_size)
        value += expand(self.minimum, value.shape[1], self.group_size)
        return value


def rtn(
    w: F32,
    bits: int,
    group_size: int,
    *,
    grid: GridKind = "range",
    importance: F32 | None = None,
    floats: Floats = "f16",
) -> AffineCodes:
    """Every weight to the nearest value of its group's grid. w: (out, in); importance: (in,), for `weighted`.

    Raises `BadInput` for weights that are not finite.
    """
    found = fit(w, bits, group_size, grid=grid, importance=importance, floats=floats)
    return AffineCodes(bits, found.codes(w, bits), found)


def copied(held: Weight | None, bits: int, group_size: int) -> AffineCodes | None:
    """The codes and grid of a weight that has them already, where groups of `group_size` and `bits` can hold them.

    Then nothing is lost: a Q4_1 file becomes 4 bits in groups of 32 (or of 16) without changing a value.
    """
    codes, scale = getattr(held, "codes", None), getattr(held, "scale", None)
    minimum = getattr(held, "minimum", getattr(held, "offset", None))
    own = getattr(held, "group_size", 0)
    if codes is None or scale is None or minimum is None or scale.ndim != 2 or own % group_size or own == 0:
        return None
    found = codes()
    if found.dtype != np.uint8 or (found.size and int(found.max()) >> bits):
        return None
    groups, times = group_count(held.shape[1], group_size), own // group_size
    wide, low = (np.ascontiguousarray(np.repeat(a, times, axis=1)[:, :groups]) for a in (scale, minimum))
    return AffineCodes(bits, found, Grid(wide, low, group_size))


def fit(
    w: F32,
    bits: int,
    group_size: int,
    *,
    grid: GridKind = "range",
    importance: F32 | None = None,
    floats: Floats = "f16",
    threads: int = 0,
) -> Grid:
    """The grid of every group of w (out, in)."""
    w = checked(w, bits, group_size)
    if grid not in get_args(GridKind):
        raise BadInput(f"no grid {grid!r}", f"grids are: {', '.join(get_args(GridKind))}")
    if grid == "weighted":
        from headway.kernels.cpu import _cpu

        weights = _positive(np.ones(w.shape[1], np.float32) if importance is None else importance)
        scale, minimum = _cpu.quantise_fit(w, weights, group_size, 2**bits - 1, CANDIDATES, NARROWEST, threads)
        return stored(scale, minimum, group_size, floats)
    groups = group_count(w.shape[1], group_size)
    scale, minimum = np.empty((len(w), groups), np.float32), np.empty((len(w), groups), np.float32)
    for rows in _panels(len(w)):
        blocks = grouped(w[rows], group_size)
        scale[rows], minimum[rows] = _range(blocks, bits) if grid == "range" else _zero(blocks, bits, grid == "mse")
    return stored(scale, minimum, group_size, floats)


def stored(scale: F32, minimum: F32, group_size: int, floats: Floats) -> Grid:
    """The grid as it will be kept: float16, unless that would lose more than rounding (tiny or huge groups)."""
    if floats == "f16":
        with np.errstate(over="ignore"):
            halves = scale.astype(np.float16), minimum.astype(np.float16)
        normal = (halves[0] >= np.finfo(np.float16).smallest_normal).all()
        if normal and np.isfinite(halves[0]).all() and np.isfinite(halves[1]).all():
            return Grid(*halves, group_size)
    return Grid(scale, minimum, group_size)


def checked(w: Any, bits: int, group_size: int) -> F32:
    """w as contiguous float32; raises `BadInput` for what no quantiser can take."""
    if not 1 <= bits <= 8:
        raise BadInput(f"bits={bits} is not within 1..8", "use 2, 3, 4 or 8")
    if group_size < 1:
        raise BadInput(f"group_size={group_size} is not positive", "use 32, 64 or 128")
    w = np.ascontiguousarray(w, np.float32)
    if w.ndim != 2 or not w.size:
        raise BadInput(f"a weight of shape {w.shape} is no matrix", "give (out_features, in_features)")
    finite(w, "the weight")
    return w


def grouped(w: F32, group_size: int) -> F32:
    """(rows, in) -> (rows, groups, group_size); a short last group is filled with its last column."""
    short = -w.shape[1] % group_size
    if short:
        w = np.pad(w, ((0, 0), (0, short)), mode="edge")
    return w.reshape(len(w), -1, group_size)


def _range(blocks: F32, bits: int) -> tuple[F32, F32]:
    low, high = blocks.min(-1), blocks.max(-1)
    scale = (high - low) / np.float32(2**bits - 1)
    flat = scale <= np.abs(low) * np.float32(2.0**-20)
    if flat.any():  # all weights alike: any positive scale gives them, as code 0
        scale = np.where(flat, np.maximum(np.abs(low) / (2**bits - 1), np.float32(2.0**-14)), scale)
    return scale.astype(np.float32), low


def _zero(blocks: F32, bits: int, search: bool) -> tuple[F32, F32]:
    top = np.float32(2**bits - 1)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    empty = low == high
    low, high = np.where(empty, -1, low).astype(np.float32), np.where(empty, 1, high).astype(np.float32)
    best_scale = (high - low) / top
    best_zero = np.rint(-low / best_scale)
    if search:
        least = np.full(low.shape, np.inf, np.float32)
        for step in range(80):
            share = np.float32(1 - step / 100)
            scale = share * (high - low) / top
            zero = np.rint(-low * share / scale)
            codes = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, top)
            error = np.abs(scale[..., None] * (codes - zero[..., None]) - blocks)
            total = (error**2 * np.power(error, np.float32(0.4))).sum(-1)
            better = total < least
            least = np.where(better, total, least)
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
    return best_scale, -best_scale * best_zero


def _positive(importance: Any) -> F32:
    """Importance as float32 above zero: columns that never saw a signal still take part, a little."""
    weights = np.ascontiguousarray(importance, np.float32)
    finite(weights[None], "the importance of columns")
    mean = float(weights.mean())
    if mean <= 0:
        return np.ones_like(weights)
    return cast(F32, np.maximum(weights / np.float32(mean), np.float32(1e-6)))


def _panels(rows: int) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, rows, _ROWS)]
