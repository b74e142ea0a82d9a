"""Bipolar-INT on a GPU (arXiv 2409.17870) in Triton: integers of any widths, recovered in the block that needs them.

Layout of weights, one word = 32 columns of one row and plane, so that neighbouring rows are neighbours:
    words   int32  [ceil(columns / 32)][bits][rows]    bit t of word k = column 32 k + t, 0 beyond the last column
    scale, offset  [groups][rows]                      value = scale V + offset, V = 2u - (2^bits - 1)
Two kernels, both with the n x m planes of an output tile recovered before anything is written (paper, section on
recovery in shared memory; `bipolar_traffic` counts what that saves):
    recover   V in registers as bytes (of 8 bits: (V - 1) / 2, the rest by row sums), then int8 `tl.dot`
    xor       xor and popcount of words, for cards whose tensor cores do not reach int8 of these widths. The 1-bit
              tensor-core product itself (m8n8k128 .xor.popc, Turing to Ada) cannot be said in Triton: this one counts
              on the ordinary cores
Integers are exact, so both give the integers of the CPU kernels; floats are summed group by group in one order.
Bytes per weight: bits / 8 + 2 / group. Products: 1 per weight and activation row (recover), n m / 32 (xor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

Way = Literal["recover", "xor"]


@triton.jit
def _bits_in(v):
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return (v + (v >> 8) + (v >> 16) + (v >> 24)) & 63


@triton.jit
def _bipolar(
    x,  # recover: int8 [batch, padded columns]; xor: int32 [words][act bits][batch]
    words,
    scale,
    offset,
    x_scale,  # [act groups][batch], float32
    x_sum,  # [segments][batch], int32: sums of V
    y,  # [batch, rows], float32, or int64
    rows,
    batch,
    columns,
    padded,
    segment,  # columns that share all scales
    group,
    act_group,
    BITS: tl.constexpr,
    ACT_BITS: tl.constexpr,
    XOR: tl.constexpr,
    OFFSET: tl.constexpr,
    EXACT: tl.constexpr,
    STEP: tl.constexpr,  # columns of one product; never across a segment's end
    BLOCK_ROWS: tl.constexpr,
    BLOCK_BATCH: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    item = tl.program_id(1) * BLOCK_BATCH + tl.arange(0, BLOCK_BATCH)
    row_in, item_in = row < rows, item < batch
    TOP: tl.constexpr = (1 << BITS) - 1
    ACT_TOP: tl.constexpr = (1 << ACT_BITS) - 1
    total = tl.zeros([BLOCK_ROWS, BLOCK_BATCH], dtype=tl.int64 if EXACT else tl.float32)
    for begin in range(0, padded, segment):
        end = tl.minimum(begin + segment, padded)
        held = tl.minimum(end, columns) - begin
        value = tl.zeros([BLOCK_ROWS, BLOCK_BATCH], dtype=tl.int32)
        if XOR:
            for word in range(begin // 32, end // 32):
                for i in tl.static_range(BITS):
                    w = tl.load(words + (word * BITS + i) * rows + row, mask=row_in, other=0)
                    w = w.to(tl.uint32, bitcast=True)
                    for j in tl.static_range(ACT_BITS):
                        a = tl.load(x + (word * ACT_BITS + j) * batch + item, mask=item_in, other=0)
                        a = a.to(tl.uint32, bitcast=True)
                        value += _bits_in(w[:, None] ^ a[None, :]).to(tl.int32) << (i + j)
            value = held * (TOP * ACT_TOP) - 2 * value
        else:
            weight_sum = tl.zeros([BLOCK_ROWS], dtype=tl.int32)
            for at in range(begin, end, STEP):
                column = at + tl.arange(0, STEP)
                code = tl.zeros([BLOCK_ROWS, STEP], dtype=tl.int32)
                for i in tl.static_range(BITS):
                    place = words + ((column // 32)[None, :] * BITS + i) * rows + row[:, None]
                    word = tl.load(place, mask=row_in[:, None], other=0)
                    code += ((word >> (column % 32)[None, :]) & 1) << i
                byte = code - 128 if BITS == 8 else 2 * code - TOP
                byte = tl.where((column < columns)[None, :], byte, 0)
                weight_sum += tl.sum(byte, axis=1)
                a = tl.load(x + item[None, :] * padded + column[:, None], mask=item_in[None, :], other=0)
                value += tl.dot(byte.to(tl.int8), a, out_dtype=tl.int32)
            # V is the byte, or 2 byte + 1; the same of activations, whose sum of V is at hand.
            if ACT_BITS == 8:
                value = 2 * value + weight_sum[:, None]
            if BITS == 8:
                sums = tl.load(x_sum + (begin // segment) * batch + item, mask=item_in, other=0)
                value = 2 * value + sums[None, :]
        if EXACT:
            total += value.to(tl.int64)
        else:
            step = tl.load(scale + (begin // group) * rows + row, mask=row_in, other=0.0).to(tl.float32)
            own = tl.load(x_scale + (begin // act_group) * batch + item, mask=item_in, other=0.0)
            total += (step[:, None] * own[None, :]) * value.to(tl.float32)
            if OFFSET:
                sums = tl.load(x_sum + (begin // segment) * batch + item, mask=item_in, other=0).to(tl.float32)
                shift = tl.load(offset + (begin // group) * rows + row, mask=row_in, other=0.0).to(tl.float32)
                total += shift[:, None] * (own * sums)[None, :]
    tl.store(y + item[None, :] * rows + row[:, None], total, mask=row_in[:, None] & item_in[None, :])


@dataclass(frozen=True)
class DeviceBipolar:
    """A bipolar weight on a device, in the layout above, and how its activations are quantised."""

    words: Tensor
    scale: Tensor
    offset: Tensor | None
    columns: int
    group: int
    act_bits: int
    act_group: int
    rotate: int
    clip: bool

    @property
    def rows(self) -> int:
        return self.words.shape[2]

    @property
    def bits(self) -> int:
        return self.words.shape[1]

    @property
    def padded(self) -> int:
        return self.words.shape[0] * 32

    @property
    def segment(self) -> int:
        """Columns that share all scales."""
        return min(int(np.gcd(self.group, self.act_group)), self.padded)


def pack(
    planes: npt.NDArray[np.uint8],
    scale: npt.NDArray[Any],
    offset: npt.NDArray[Any] | None,
    columns: int,
    group: int,
    act_bits: int,
    act_group: int,
    rotate: int,
    clip: bool,
    device: torch.device | str = "cuda",
) -> DeviceBipolar:
    """planes: (bits, rows, ceil(columns / 8)); scale, offset: (rows, groups); groups of 0 are the row.

    Raises ValueError for groups that are no multiple of 32.
    """
    for size in (group, act_group):
        if size % 32:
            raise ValueError(f"group of {size} columns is no multiple of 32")
    bits, rows, row_bytes = planes.shape
    padded = np.zeros((bits, rows, -(-columns // 32) * 4), np.uint8)
    padded[:, :, :row_bytes] = planes
    words = np.ascontiguousarray(padded.view("<i4").transpose(2, 0, 1))
    whole = words.shape[0] * 32
    sizes = [size if 0 < size < columns else whole for size in (group, act_group)]
    if sizes[0] == whole and sizes[1] != whole:
        sizes[0] = -(-whole // sizes[1]) * sizes[1]  # one group, of whole segments
    if sizes[1] == whole and sizes[0] < whole:
        sizes[1] = -(-whole // sizes[0]) * sizes[0]
    floats = [None if a is None else torch.from_numpy(a.T.copy()).to(device) for a in (scale, offset)]
    assert floats[0] is not None
    return DeviceBipolar(
        torch.from_numpy(words).to(device), floats[0], floats[1], columns, sizes[0], act_bits, sizes[1], rotate, clip
    )


@dataclass(frozen=True)
class DeviceActivations:
    """levels: odd V, int32 (batch, columns). scale: float32 (act groups, batch), NaN where one is not finite."""

    levels: Tensor
    scale: Tensor


def turn(x: Tensor, size: int) -> Tensor:
    """x (batch, columns) times block Hadamard matrices, by the butterflies of the CPU kernels."""
    if not size:
        return x
    parts, at = [], 0
    while at < x.shape[1]:
        n = size
        while n > x.shape[1] - at:
            n //= 2
        part = x[:, at : at + n] * 2.0 ** -((n.bit_length() - 1) // 2)
        h = 1
        while h < n:
            pairs = part.reshape(len(x), -1, 2, h)
            part = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), dim=2)
            h *= 2
        parts.append(part.reshape(len(x), n))
        at += n
    return torch.cat(parts, dim=1)


def quantise(x: Tensor, weight: DeviceBipolar) -> DeviceActivations:
    """x: (batch, columns) float32, as the CPU kernels round it (sums of a group run in another order)."""
    x = turn(x, weight.rotate)
    top = float(2**weight.act_bits - 1)
    levels, scales = [], []
    for part in x.split(weight.act_group, dim=1):
        size = part.abs()
        scale = size.mean(1) if weight.act_bits == 1 else size.amax(1) / top
        tries = 6 if weight.clip and 2 <= weight.act_bits <= 4 else 1
        best, least, found = scale, torch.full_like(scale, torch.inf), torch.zeros_like(part)
        for k in range(tries):
            step = scale * (1 - 0.1 * k)
            inverse = torch.where(step > 2.0**-100, 0.5 / step, 0.0)
            level = 2 * (part * inverse[:, None] + 0.5 * top).clamp(0, top).round() - top
            lost = (part - step[:, None] * level).square().sum(1)
            better = lost < least
            best, least = torch.where(better, step, best), torch.where(better, lost, least)
            found = torch.where(better[:, None], level, found)
        finite = part.isfinite().all(1)
        best = torch.where(best > 2.0**-100, best, 0.0)
        levels.append(torch.where(finite[:, None], found, 0.0).to(torch.int32))
        scales.append(torch.where(finite, best, torch.nan))
    return DeviceActivations(torch.cat(levels, dim=1), torch.stack(scales))


def matmul(
    x: Tensor, weight: DeviceBipolar, way: Way | None = None, block_rows: int = 64, block_batch: int = 32
) -> Tensor:
    """x: (..., columns) -> (..., rows) in x's dtype. `way` None: what `best_way` says of the device and the widths."""
    flat = x.reshape(-1, x.shape[-1]).to(torch.float32)
    y = _launch(quantise(flat, weight), weight, way, False, block_rows, block_batch)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.rows)


def integers(
    levels: Tensor, weight: DeviceBipolar, way: Way | None = None, block_rows: int = 64, block_batch: int = 32
) -> Tensor:
    """sum_k V_w V_x of odd levels (batch, columns): int64 (batch, rows)."""
    scale = torch.ones(-(-weight.columns // weight.act_group), len(levels), device=levels.device)
    given = DeviceActivations(levels.to(torch.int32), scale)
    return _launch(given, weight, way, True, block_rows, block_batch)


def best_way(device: torch.device, bits: int, act_bits: int) -> Way:
    """`xor` on cards with 1-bit products (Turing to Ada) for few planes; from Hopper on they are gone."""
    if device.type != "cuda" or not (7, 5) <= torch.cuda.get_device_capability(device) < (9, 0):
        return "recover"
    return "xor" if bits * act_bits <= 2 else "recover"


def _launch(
    given: DeviceActivations, weight: DeviceBipolar, way: Way | None, exact: bool, block_rows: int, block_batch: int
) -> Tensor:
    batch, device = len(given.levels), given.levels.device
    way = way or best_way(device, weight.bits, weight.act_bits)
    levels = torch.zeros(batch, weight.padded, dtype=torch.int32, device=device)
    levels[:, : weight.columns] = given.levels
    sums = torch.stack([part.sum(1, dtype=torch.int32) for part in levels.split(weight.segment, dim=1)])
    y = torch.empty(batch, weight.rows, dtype=torch.int64 if exact else torch.float32, device=device)
    if not batch:
        return y
    top = 2**weight.act_bits - 1
    if way == "xor":
        codes = (levels + top) >> 1
        codes[:, weight.columns :] = 0
        places = torch.arange(32, device=device, dtype=torch.int64)
        bits = [((codes >> j) & 1).reshape(batch, -1, 32).to(torch.int64) << places for j in range(weight.act_bits)]
        held = torch.stack([plane.sum(2) for plane in bits]).permute(2, 0, 1)
        operand = torch.where(held >= 1 << 31, held - (1 << 32), held).to(torch.int32).contiguous()
    else:
        eight = weight.act_bits == 8
        operand = ((levels - 1) >> 1 if eight else levels).to(torch.int8)
        operand[:, weight.columns :] = 0
    grid = (triton.cdiv(weight.rows, block_rows), triton.cdiv(batch, block_batch))
    _bipolar[grid](
        operand,
        weight.words,
        weight.scale,
        weight.scale if weight.offset is None else weight.offset,
        given.scale,
        sums,
        y,
        weight.rows,
        batch,
        weight.columns,
        weight.padded,
        weight.segment,
        weight.group,
        weight.act_group,
        BITS=weight.bits,
        ACT_BITS=weight.act_bits,
        XOR=way == "xor",
        OFFSET=weight.offset is not None,
        EXACT=exact,
        STEP=64 if weight.segment % 64 == 0 and weight.padded % 64 == 0 else 32,
        BLOCK_ROWS=block_rows,
        BLOCK_BATCH=block_batch,
    )
    return y
