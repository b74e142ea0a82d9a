"""The exact value of every GGUF block, defined once: `value = code * scale + minimum`, in float32.

A quantised block holds small unsigned codes; groups of `group` neighbouring codes of a row share one scale and
one minimum. Code and scale together never have more than 24 significant bits (Q6_K: 6 + 18, Q8_0: 8 + 11), so
their product is exact in float32 and only the sum is rounded: with or without a fused multiply-add, in C, numpy
or torch, the value is the same bits. Types without a stored minimum have minimum = -zero * scale with a whole
`zero`; there the sum is exact as well.

Layouts follow the block structures published with ggml (ggml-common.h); f16 means IEEE half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[Any]
"""Of uint8; numpy's stubs lose the type in `&`, `|` and `>>`."""
F32 = npt.NDArray[np.float32]

Parts = tuple[U8, F32, F32 | None]


@dataclass(frozen=True)
class Affine:
    """Codes and their affine map: element (r, c) is codes[r, c] * scale[r, c // group] + minimum[r, c // group]."""

    codes: U8
    """(rows, columns)."""
    scale: F32
    """(rows, columns / group)."""
    minimum: F32
    """(rows, columns / group)."""
    group: int
    bits: int
    """Codes lie in 0 .. 2^bits - 1."""
    zero: int | None = None
    """Where minimum is -zero * scale exactly; None where the minimum is stored."""

    def values(self) -> F32:
        """The float32 value, (rows, columns); a code equal to `zero` keeps the sign of its scale's zero."""
        rows, columns = self.codes.shape
        codes = self.codes.reshape(rows, columns // self.group, self.group).astype(np.float32)
        if self.zero is not None:
            codes -= np.float32(self.zero)
            codes *= self.scale[:, :, None]
        else:
            codes *= self.scale[:, :, None]
            codes += self.minimum[:, :, None]
        return codes.reshape(rows, columns)


@dataclass(frozen=True)
class Block:
    """One storage type: `size` elements in `nbytes` bytes."""

    name: str
    size: int
    nbytes: int
    bits: int = 0
    """Bits of a code; 0 for plain floats."""
    group: int = 0
    zero: int | None = None
    split: Callable[[U8], Parts] | None = None
    """(blocks, nbytes) -> codes (blocks, size), scale (blocks, size / group), minimum likewise or None."""


def _half(raw: U8, at: int) -> F32:
    """The f16 at byte `at` of each block, as a (blocks, 1) float32 column."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(raw: U8) -> U8:
    """(blocks, n) -> (blocks, 2n): all low nibbles, then all high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def _fifth_bits(raw: U8) -> U8:
    """32 bits, least significant first -> (blocks, 32) of 0 or 16."""
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


def _crumbs(raw: U8) -> U8:
    """(blocks, n, 32) bytes -> (blocks, n, 4, 32): the 2-bit fields of each byte, lowest first."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    return (raw[:, :, None, :] >> shifts) & 3


def _q4_0(raw: U8) -> Parts:
    return _nibbles(raw[:, 2:]), _half(raw, 0), None


def _q4_1(raw: U8) -> Parts:
    return _nibbles(raw[:, 4:]), _half(raw, 0), _half(raw, 2)


def _q5_0(raw: U8) -> Parts:
    return _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6]), _half(raw, 0), None


def _q5_1(raw: U8) -> Parts:
    return _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8]), _half(raw, 0), _half(raw, 2)


def _q8_0(raw: U8) -> Parts:
    return raw[:, 2:] ^ 128, _half(raw, 0), None


def _q2_k(raw: U8) -> Parts:
    """16 x (4-bit scale | 4-bit minimum << 4) | 64 bytes of 2-bit codes | f16 d | f16 dmin."""
    codes = _crumbs(raw[:, 16:80].reshape(-1, 2, 32)).reshape(-1, 256)
    scale = _half(raw, 80) * (raw[:, :16] & 15).astype(np.float32)
    minimum = -(_half(raw, 82) * (raw[:, :16] >> 4).astype(np.float32))
    return codes, scale, minimum


def _q3_k(raw: U8) -> Parts:
    """32 bytes of high bits | 64 bytes of low 2 bits | 12 bytes of sixteen 6-bit scales | f16 d."""
    low = _crumbs(raw[:, 32:96].reshape(-1, 2, 32))
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1)
    high = (raw[:, None, None, :32] >> shifts) & 1
    codes = (low | (high << 2)).reshape(-1, 256)
    pairs = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 4, 1)
    top = ((raw[:, None, 104:108] >> pairs) & 3).reshape(-1, 16)
    six = _nibbles(raw[:, 96:104]) | (top << 4)
    return codes, _half(raw, 108) * (six.astype(np.float32) - np.float32(32)), None


def _sixes(raw: U8) -> tuple[F32, F32]:
    """12 bytes -> eight 6-bit scales and eight 6-bit minimums (Q4_K, Q5_K)."""
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimum = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def _nibble_rows(raw: U8) -> U8:
    """128 bytes -> 256 codes: each 32 bytes give 32 low nibbles, then 32 high ones."""
    rows = raw.reshape(-1, 4, 1, 32)
    return np.concatenate([rows & 15, rows >> 4], axis=2).reshape(-1, 256)


def _q4_k(raw: U8) -> Parts:
    """f16 d | f16 dmin | 12 bytes of scales and minimums | 128 bytes of nibbles."""
    scale, minimum = _sixes(raw[:, 4:16])
    return _nibble_rows(raw[:, 16:]), _half(raw, 0) * scale, -(_half(raw, 2) * minimum)


def _q5_k(raw: U8) -> Parts:
    """f16 d | f16 dmin | 12 bytes of scales and minimums | 32 bytes of fifth bits | 128 bytes of nibbles."""
    scale, minimum = _sixes(raw[:, 4:16])
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = ((raw[:, None, 16:48] >> shifts) & 1).reshape(-1, 256)
    return _nibble_rows(raw[:, 48:]) | (fifth << 4), _half(raw, 0) * scale, -(_half(raw, 2) * minimum)


def _q6_k(raw: U8) -> Parts:
    """128 bytes of low nibbles | 64 bytes of high 2 bits | 16 signed scales | f16 d."""
    halves = raw[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(-1, 256)
    high = _crumbs(raw[:, 128:192].reshape(-1, 2, 32)).reshape(-1, 256)
    scale = _half(raw, 208) * raw[:, 192:208].view(np.int8).astype(np.float32)
    return low | (high << 4), scale, None


F32_KIND, F16_KIND, BF16_KIND = 0, 1, 30

BLOCKS: dict[int, Block] = {
    F32_KIND: Block("F32", 1, 4),
    F16_KIND: Block("F16", 1, 2),
    2: Block("Q4_0", 32, 18, 4, 32, 8, _q4_0),
    3: Block("Q4_1", 32, 20, 4, 32, None, _q4_1),
    6: Block("Q5_0", 32, 22, 5, 32, 16, _q5_0),
    7: Block("Q5_1", 32, 24, 5, 32, None, _q5_1),
    8: Block("Q8_0", 32, 34, 8, 32, 128, _q8_0),
    10: Block("Q2_K", 256, 84, 2, 16, None, _q2_k),
    11: Block("Q3_K", 256, 110, 3, 16, 4, _q3_k),
    12: Block("Q4_K", 256, 144, 4, 32, None, _q4_k),
    13: Block("Q5_K", 256, 176, 5, 32, None, _q5_k),
    14: Block("Q6_K", 256, 210, 6, 16, 32, _q6_k),
    BF16_KIND: Block("BF16", 1, 2),
}
"""By the type number of the file format."""

_OTHER_NAMES = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL"}
_OTHER_NAMES |= {21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
_OTHER_NAMES |= {29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}

_CHUNK_BLOCKS = 1 << 14


def type_name(kind: int) -> str:
    """The format's name for a type number, also for those that are not read here."""
    return BLOCKS[kind].name if kind in BLOCKS else f"{_OTHER_NAMES.get(kind, 'unknown')} ({kind})"


def affine(raw: U8, kind: int, shape: tuple[int, int]) -> Affine:
    """Split the bytes of a quantised matrix of `shape` (rows, columns) into codes and their affine map."""
    block = BLOCKS[kind]
    if block.split is None:
        raise ValueError(f"{block.name} holds plain floats")
    rows, columns = shape
    blocks = raw.reshape(-1, block.nbytes)
    count = len(blocks)
    groups = block.size // block.group
    codes = np.empty((count, block.size), np.uint8)
    scale = np.empty((count, groups), np.float32)
    minimum = np.empty((count, groups), np.float32)
    for start in range(0, count, _CHUNK_BLOCKS):
        part = slice(start, start + _CHUNK_BLOCKS)
        codes[part], scale[part], stored = block.split(blocks[part])
        minimum[part] = scale[part] * np.float32(-(block.zero or 0)) if stored is None else stored
    per_row = columns // block.group
    return Affine(
        codes.reshape(rows, columns),
        scale.reshape(rows, per_row),
        minimum.reshape(rows, per_row),
        block.group,
        block.bits,
        block.zero,
    )


def floats(raw: U8, kind: int) -> F32:
    """The float32 values of a plain-float tensor's bytes, flat."""
    if kind == F32_KIND:
        return raw.view("<f4").astype(np.float32)
    if kind == F16_KIND:
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def dequantise(raw: U8, kind: int, shape: tuple[int, int]) -> F32:
    """The exact float32 value of a matrix, (rows, columns), from its bytes in the file."""
    if BLOCKS[kind].split is None:
        return floats(raw, kind).reshape(shape)
    rows, columns = shape
    out = np.empty(shape, np.float32)
    per_row = raw.size // rows
    step = max(1, _CHUNK_BLOCKS * BLOCKS[kind].size // columns)
    for start in range(0, rows, step):
        part = raw[start * per_row : (start + step) * per_row]
        out[start : start + step] = affine(part, kind, (part.size // per_row, columns)).values()
    return out
