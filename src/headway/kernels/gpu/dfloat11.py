"""DFloat11 on a GPU (arXiv 2504.11651, section 2.3), in Triton: blocks of 512 threads expand 4,096 bytes of code each.

The format is that of kernels/cpu/dfloat11.h. One kernel, two phases: every thread walks the codes that start in its 8
bytes and counts them; an exclusive prefix sum of the counts over the block, from the position where the block begins,
says where its weights go; then it walks the same codes again and writes bfloat16. A thread has its 8 bytes and the 4
after them in registers. Codes are found byte by byte in the tables of the format: an entry of 240 or more names the
table for the next byte.
Bytes per weight: 0.33 of code, 1 of sign and mantissa, 2 written. Writes go to where each weight belongs: threads of a
block write neighbouring runs of about 24 weights, which the caches join (Triton has no scatter into shared memory).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

THREADS, CHUNK_BYTES = 512, 8
TILE = 16
"""Rows whose weights stand together in the stream, column by column."""


@triton.jit
def _next(head, tail, at, luts, ROWS: tl.constexpr, BYTES: tl.constexpr):
    """Exponent and bits of the code at bit `at` (0..63) of 8 bytes and the 4 after them, which stand atop `tail`."""
    shift = at.to(tl.uint64)
    window = (head << shift) | ((tail >> 1) >> (shift ^ 63))
    symbol = tl.load(luts + (window >> 56)).to(tl.int32)
    for byte in tl.static_range(1, BYTES):
        pointer = symbol >= 240
        deeper = ((symbol ^ 255) << 8) | ((window >> (56 - 8 * byte)) & 255).to(tl.int32)  # 256 - symbol is the row
        symbol = tl.where(pointer, tl.load(luts + 256 + deeper, mask=pointer, other=0).to(tl.int32), symbol)
    return symbol, tl.load(luts + (ROWS - 1) * 256 + symbol).to(tl.int32)


@triton.jit
def _expand(
    code,  # uint8, whole blocks and 4 bytes more
    sign_mantissa,
    gaps,  # uint8, per chunk
    positions,  # int64, per block and one more
    luts,  # uint8 [ROWS][256]
    out,  # int16, the bits of bfloat16
    steps,  # codes that can start in 8 bytes
    blocks,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,  # of the longest code
    THREADS: tl.constexpr,
    PER: tl.constexpr,  # blocks of a program
):
    block = tl.program_id(0) * PER + tl.arange(0, PER)[:, None]
    here = block < blocks
    thread = block * THREADS + tl.arange(0, THREADS)[None, :]
    head = tl.zeros([PER, THREADS], dtype=tl.uint64)
    tail = tl.zeros([PER, THREADS], dtype=tl.uint64)
    for byte in tl.static_range(8):
        head = (head << 8) | tl.load(code + thread * 8 + byte, mask=here, other=0).to(tl.uint64)
    for byte in tl.static_range(4):
        tail = (tail << 8) | tl.load(code + thread * 8 + 8 + byte, mask=here, other=0).to(tl.uint64)
    tail = tail << 32
    start = tl.load(gaps + thread, mask=here, other=0).to(tl.int32)

    at = start
    count = tl.zeros([PER, THREADS], dtype=tl.int32)
    for _ in range(steps):
        inside = at < 64
        _, bits = _next(head, tail, at & 63, luts, ROWS, BYTES)
        count += inside.to(tl.int32)
        at += tl.where(inside, bits, 0)

    end = tl.load(positions + block + 1, mask=here, other=0)
    begin = tl.load(positions + block, mask=here, other=0)
    place = begin + (tl.cumsum(count, axis=1) - count).to(tl.int64)
    at = start
    for _ in range(steps):
        inside = (at < 64) & (place < end)
        symbol, bits = _next(head, tail, at & 63, luts, ROWS, BYTES)
        rest = tl.load(sign_mantissa + place, mask=inside, other=0).to(tl.int32)
        value = ((rest & 0x80) << 8) | (symbol << 7) | (rest & 0x7F)
        tl.store(out + place, value.to(tl.int16), mask=inside)
        place += inside.to(tl.int64)
        at += tl.where(inside, bits, 64)


@dataclass(frozen=True)
class DeviceCoded:
    """A coded matrix on a device: code padded to whole blocks, one gap a byte."""

    code: Tensor
    sign_mantissa: Tensor
    gaps: Tensor
    positions: Tensor
    luts: Tensor
    shortest: int
    longest: int
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        parts = (self.code, self.sign_mantissa, self.gaps, self.positions, self.luts)
        return sum(part.numel() * part.element_size() for part in parts)


def pack(
    code: npt.NDArray[np.uint8],
    sign_mantissa: npt.NDArray[np.uint8],
    gaps: npt.NDArray[np.uint8],
    positions: npt.NDArray[np.uint32],
    luts: npt.NDArray[np.uint8],
    shape: tuple[int, int],
    device: torch.device | str = "cuda",
) -> DeviceCoded:
    """The arrays of a `CodedWeight` of that shape, and the tables of its code (`huffman.tables`)."""
    blocks = len(positions) - 1
    padded = np.zeros(blocks * THREADS * CHUNK_BYTES + 4, np.uint8)
    padded[: len(code)] = code
    bits = np.unpackbits(gaps)[: len(gaps) * 8 // 5 * 5].reshape(-1, 5)
    offsets = np.zeros(blocks * THREADS, np.uint8)
    filled = min(len(bits), len(offsets))
    offsets[:filled] = np.packbits(bits[:filled], axis=1)[:, 0] >> 3
    lengths = luts[-1]
    return DeviceCoded(
        torch.from_numpy(padded).to(device),
        torch.from_numpy(np.array(sign_mantissa)).to(device),
        torch.from_numpy(offsets).to(device),
        torch.from_numpy(positions.astype(np.int64)).to(device),
        torch.from_numpy(luts.copy()).to(device),
        int(lengths[lengths > 0].min()),
        int(lengths.max()),
        shape,
    )


def expand(weight: DeviceCoded, per_program: int = 1) -> Tensor:
    """The matrix (out, in) in bfloat16, bit for bit. `per_program`: blocks (a power of two) that a program expands."""
    blocks = len(weight.positions) - 1
    rows, columns = weight.shape
    stream = torch.empty(rows * columns, dtype=torch.int16, device=weight.code.device)
    _expand[(triton.cdiv(blocks, per_program),)](
        weight.code,
        weight.sign_mantissa,
        weight.gaps,
        weight.positions,
        weight.luts,
        stream,
        64 // weight.shortest + 1,
        blocks,
        ROWS=len(weight.luts),
        BYTES=(weight.longest + 7) // 8,
        THREADS=THREADS,
        PER=per_program,
    )
    whole = rows // TILE * TILE
    tiles = stream[: whole * columns].reshape(-1, columns, TILE).transpose(1, 2).reshape(whole, columns)
    last = stream[whole * columns :].reshape(columns, rows - whole).T
    return torch.cat([tiles, last]).view(torch.bfloat16)
