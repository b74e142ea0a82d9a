"""LUT-GEMM on a GPU (arXiv 2206.09557, section 4), in Triton: tables of 256 sums in fast memory, one byte per look-up.

Layout, one word = 32 columns of one row and plane, so that neighbouring threads (rows) read neighbouring words:
    words   int32  [ceil(columns / 32)][bits][rows]    bit t of word k = column 32 k + t
    scale   [groups][1 or bits][rows]                  1: uniform, value = scale * code + offset
    offset  [groups][rows]                             else    value = sum_i scale_i b_i + offset, b_i = +-1
For 8 activations the table is T[j] = sum_i (2 bit_i(j) - 1) x_i: two tables of 16, then all their sums, 16 + 16 + 256
additions instead of 2,048. T[255] is the sum of the activations, which the offset needs. A program owns BLOCK_ROWS
rows and a run of columns, and writes its partial sum; partial sums are added in order, so a result never depends on
the order in which programs run (the paper's atomic additions do).
Bytes per weight: bits / 8 + 4 / group (uniform, float16). Look-ups per weight: bits / 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _lut_gemv(
    x,  # [batch, padded columns], float32
    words,
    scale,
    offset,
    partial,  # [splits, batch, rows], float32
    rows,
    columns,  # padded
    group,
    tiles_per_split,
    batch,
    BITS: tl.constexpr,
    UNIFORM: tl.constexpr,
    TILE: tl.constexpr,  # columns whose tables exist together: 32 or 64, never across a group's end
    BLOCK_ROWS: tl.constexpr,
):
    split = tl.program_id(1)
    at_batch = tl.program_id(2)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = row < rows
    j = tl.arange(0, 16)
    TABLES: tl.constexpr = TILE // 8
    WORDS: tl.constexpr = TILE // 32
    table = tl.arange(0, TABLES)
    acc = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, columns // TILE)):
        low = tl.zeros([TABLES, 16], dtype=tl.float32)
        high = tl.zeros([TABLES, 16], dtype=tl.float32)
        for i in tl.static_range(4):
            sign = (((j >> i) & 1) * 2 - 1).to(tl.float32)[None, :]
            base = x + at_batch * columns + tile * TILE + table * 8 + i
            low += sign * tl.load(base)[:, None]
            high += sign * tl.load(base + 4)[:, None]
        entries = tl.reshape(high[:, :, None] + low[:, None, :], [TABLES, 256])
        total = tl.sum(tl.sum(tl.where(tl.arange(0, 256)[None, :] == 255, entries, 0.0), axis=1), axis=0)

        at_group = tile * TILE // group
        combined = tl.zeros([BLOCK_ROWS], dtype=tl.float32)
        for plane in tl.static_range(BITS):
            word = (tile * WORDS + table // 4)[:, None]
            bits = tl.load(words + (word * BITS + plane) * rows + row[None, :], mask=inside[None, :], other=0)
            index = (bits >> ((table % 4) * 8)[:, None]) & 255
            looked = tl.sum(tl.gather(entries, index, axis=1), axis=0)
            if UNIFORM:
                combined += looked * (2.0**plane)
            else:
                alpha = tl.load(scale + (at_group * BITS + plane) * rows + row, mask=inside, other=0.0)
                combined += alpha.to(tl.float32) * looked
        if UNIFORM:
            step = tl.load(scale + at_group * rows + row, mask=inside, other=0.0).to(tl.float32)
            combined = step * (combined + (2.0**BITS - 1.0) * total) * 0.5
        acc += combined
        acc += tl.load(offset + at_group * rows + row, mask=inside, other=0.0).to(tl.float32) * total
    tl.store(partial + (split * batch + at_batch) * rows + row, acc, mask=inside)


@dataclass(frozen=True)
class DevicePlanes:
    """A bit-plane weight on a device, in the layout above."""

    words: Tensor
    scale: Tensor
    offset: Tensor
    columns: int
    group: int
    uniform: bool

    @property
    def rows(self) -> int:
        return self.words.shape[2]

    @property
    def bits(self) -> int:
        return self.words.shape[1]


def pack(
    planes: npt.NDArray[np.uint8],
    scale: npt.NDArray[Any],
    offset: npt.NDArray[Any],
    columns: int,
    group: int,
    device: torch.device | str = "cuda",
) -> DevicePlanes:
    """planes: (bits, rows, ceil(columns / 8)); scale: (rows, groups) or (bits, rows, groups); offset: (rows, groups).

    Raises ValueError for groups that are no multiple of 32 (tables must not cross a group's end).
    """
    if group % 32 and group < columns:
        raise ValueError(f"group of {group} columns is no multiple of 32")
    bits, rows, row_bytes = planes.shape
    padded = np.zeros((bits, rows, -(-columns // 32) * 4), np.uint8)
    padded[:, :, :row_bytes] = planes
    words = np.ascontiguousarray(padded.view("<i4").transpose(2, 0, 1))
    scales = scale[None] if scale.ndim == 2 else scale
    return DevicePlanes(
        torch.from_numpy(words).to(device),
        torch.from_numpy(scales.transpose(2, 0, 1).copy()).to(device),
        torch.from_numpy(offset.T.copy()).to(device),
        columns,
        group if group < columns else words.shape[0] * 32,
        scale.ndim == 2,
    )


def matmul(x: Tensor, weight: DevicePlanes, block_rows: int = 256, splits: int = 0) -> Tensor:
    """x: (..., columns) -> (..., rows) in x's dtype. `splits`: runs of columns summed apart; 0: to fill the device."""
    flat = x.reshape(-1, x.shape[-1])
    padded = weight.words.shape[0] * 32
    given = torch.zeros(len(flat), padded, dtype=torch.float32, device=x.device)
    given[:, : weight.columns] = flat
    tile = 64 if weight.group % 64 == 0 and padded % 64 == 0 else 32
    tiles, blocks = padded // tile, triton.cdiv(weight.rows, block_rows)
    splits = min(tiles, splits or max(1, _programs_wanted(x.device) // (blocks * max(1, len(flat)))))
    partial = torch.empty(splits, len(flat), weight.rows, dtype=torch.float32, device=x.device)
    if len(flat):
        _lut_gemv[(blocks, splits, len(flat))](
            given,
            weight.words,
            weight.scale,
            weight.offset,
            partial,
            weight.rows,
            padded,
            weight.group,
            triton.cdiv(tiles, splits),
            len(flat),
            BITS=weight.bits,
            UNIFORM=weight.uniform,
            TILE=tile,
            BLOCK_ROWS=block_rows,
        )
    return partial.sum(0).to(x.dtype).reshape(*x.shape[:-1], weight.rows)


def _programs_wanted(device: torch.device) -> int:
    """Four programs for every multiprocessor hide the latency of the table look-ups."""
    if device.type != "cuda":
        return 4
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count
