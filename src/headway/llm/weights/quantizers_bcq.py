"""`bcq`: binary coding, the non-uniform grid of LUT-GEMM (arXiv 2206.09557, section 3).

    value = sum_i alpha_i b_i + offset,   b_i in {-1, +1},   one alpha per plane and one offset per group of a row

Greedy start (the sign of what is left, its mean size as alpha), then rounds of two exact steps: alphas (and offset) by
least squares given the signs, signs by the nearest of the 2^bits values given the alphas. With H the values are fitted
weighted by its diagonal and the signs come from a pass with error feedback (`gptq`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.weight import F32
from headway.llm.weights.base import Array
from headway.llm.weights.grouped import expand, group_count
from headway.llm.weights.quantizers import U8, Floats, _panels, _positive, checked, grouped

ROUNDS = 15


@dataclass(frozen=True)
class BinaryCodes:
    """codes: uint8 (out, in), bit i is (b_i + 1) / 2. alphas: (bits, out, groups) descending, offset: (out, groups)."""

    codes: U8
    alphas: Array
    offset: Array
    group_size: int

    @property
    def bits(self) -> int:
        return len(self.alphas)

    def dequantize(self) -> F32:
        """Planes added in order, the offset last, in float32."""
        columns = self.codes.shape[1]
        value = np.zeros(self.codes.shape, np.float32)
        for i, plane in enumerate(self.alphas):
            alpha = expand(plane, columns, self.group_size)
            value += np.where((self.codes >> i) & 1, alpha, -alpha)
        value += expand(self.offset, columns, self.group_size)
        return value


def bcq(
    w: F32,
    bits: int,
    group_size: int,
    *,
    rounds: int = ROUNDS,
    offset: bool = True,
    importance: F32 | None = None,
    hessian: F32 | None = None,
    floats: Floats = "f16",
    damping: float = 0.01,
    threads: int = 0,
) -> BinaryCodes:
    """w: (out, in); importance: (in,), by default the diagonal of `hessian` or ones; `rounds` 0: greedy alone.

    Without `offset` it is zero. One plane needs no rounds. Raises `BadInput` for weights that are not finite.
    """
    w = checked(w, bits, group_size)
    if bits > 4:
        raise BadInput(f"bits={bits} is over 4", "binary coding takes 1 to 4 planes")
    if importance is None:
        importance = np.ones(w.shape[1], np.float32) if hessian is None else np.diagonal(hessian)
    weights = np.pad(_positive(importance), (0, -w.shape[1] % group_size))  # a short last group: the filling weighs 0
    weights = weights.reshape(1, -1, group_size)
    shape = (len(w), group_count(w.shape[1], group_size))
    alphas, offsets = np.empty((bits, *shape), np.float32), np.empty(shape, np.float32)
    for rows in _panels(len(w)):
        alphas[:, rows], offsets[rows] = _fit(grouped(w[rows], group_size), weights, bits, rounds, offset)
    if floats == "f16" and max(np.abs(alphas).max(), np.abs(offsets).max()) < 6e4:
        half = alphas.astype(np.float16), offsets.astype(np.float16)
        return _with_codes(w, *half, group_size, hessian, damping, threads)
    return _with_codes(w, alphas, offsets, group_size, hessian, damping, threads)


def _with_codes(
    w: F32, alphas: Array, offset: Array, group_size: int, hessian: F32 | None, damping: float, threads: int
) -> BinaryCodes:
    """The signs for given values: nearest, or with error feedback under H."""
    from headway.kernels.cpu import _cpu
    from headway.llm.weights.quantizers_gptq import feedback

    values, ranks = levels(alphas.astype(np.float32), offset.astype(np.float32))
    if hessian is None:
        codes = np.empty(w.shape, np.uint8)
        for rows in _panels(len(w)):
            near = _nearest(grouped(w[rows], group_size), values[rows])
            codes[rows] = near.reshape(len(near), -1)[:, : w.shape[1]]
    else:
        pass_ = feedback(hessian, damping, True)
        codes = _cpu.quantise_sweep(
            w, pass_.v, pass_.order, None, None, values, group_size, values.shape[-1] - 1, threads
        )
    for rows in _panels(len(w)):
        ordered = grouped(codes[rows], group_size)
        codes[rows] = np.take_along_axis(ranks[rows], ordered, -1).reshape(len(ordered), -1)[:, : w.shape[1]]
    return BinaryCodes(codes, alphas, offset, group_size)


def levels(alphas: F32, offset: F32) -> tuple[F32, U8]:
    """All values a group can take, ascending (out, groups, 2^bits), and the code of each."""
    bits = len(alphas)
    values = np.zeros((*offset.shape, 1 << bits), np.float32)
    code = np.arange(1 << bits)
    for i, alpha in enumerate(alphas):
        values += np.where((code >> i) & 1, alpha[..., None], -alpha[..., None])
    values += offset[..., None]
    order = np.argsort(values, axis=-1, kind="stable").astype(np.uint8)
    return np.ascontiguousarray(np.take_along_axis(values, order, -1)), order


def _nearest(blocks: F32, values: F32) -> U8:
    """Index of the nearest of the ascending `values` (..., n) for every element of blocks (..., g)."""
    middles = (values[..., :-1] + values[..., 1:]) / 2
    found = np.zeros(blocks.shape, np.uint8)
    for i in range(middles.shape[-1]):
        found += blocks > middles[..., i, None]
    return found


def _signs(codes: U8, bits: int) -> F32:
    """(..., g) -> (..., bits, g) of -1 and +1."""
    planes = [((codes >> i) & 1).astype(np.float32) * 2 - 1 for i in range(bits)]
    return np.stack(planes, axis=-2)


def _fit(blocks: F32, weights: F32, bits: int, rounds: int, offset: bool) -> tuple[F32, F32]:
    """Alphas (bits, rows, groups) and offsets (rows, groups) of blocks (rows, groups, g)."""
    total = weights.sum(-1)
    shift = (blocks * weights).sum(-1) / total if offset else np.zeros(blocks.shape[:2], np.float32)
    left = blocks - shift[..., None]
    alphas = []
    for _ in range(bits):
        alpha = (np.abs(left) * weights).sum(-1) / total
        left = left - np.where(left >= 0, alpha[..., None], -alpha[..., None])
        alphas.append(alpha)
    found = np.stack(alphas).astype(np.float32)
    for _ in range(rounds if bits > 1 else 0):
        values, order = levels(found, shift.astype(np.float32))
        codes = np.take_along_axis(order, _nearest(blocks, values), -1)
        solved = _least_squares(_signs(codes, bits), blocks, weights, offset)
        sizes = -np.sort(-np.abs(solved[..., :bits]), axis=-1)
        found = np.moveaxis(sizes, -1, 0).astype(np.float32)
        if offset:
            shift = solved[..., bits].astype(np.float32)
    return found, shift.astype(np.float32)


def _least_squares(signs: F32, blocks: F32, weights: F32, offset: bool) -> npt.NDArray[np.float64]:
    """The alphas (and offset, last) that fit blocks best given the signs (rows, groups, bits, g)."""
    basis = signs
    if offset:
        basis = np.concatenate([signs, np.ones_like(signs[..., :1, :])], axis=-2)
    weighted = basis * weights[..., None, :]
    normal = (weighted @ np.swapaxes(basis, -1, -2)).astype(np.float64)
    right = (weighted @ blocks[..., None])[..., 0].astype(np.float64)
    size = normal.shape[-1]
    normal[..., range(size), range(size)] += 1e-6 * np.maximum(normal[..., range(size), range(size)], 1e-12)
    return np.linalg.solve(normal, right[..., None])[..., 0]
