"""From what a checkpoint stores to a `Weight` of exactly that value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.weight import F32, Weight
from headway.llm.gguf.blocks import Affine
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.grouped import Int4Weight, Int8Weight

EXPONENTS: dict[str, int] = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""A float of the type is NaN or infinite exactly when all these bits are set."""

_CHUNK = 1 << 22


def all_finite(words: npt.NDArray[Any], dtype: str) -> bool:
    """Whether no element is NaN or infinite; `words` as the file holds them, in bounded memory."""
    bits = words.reshape(-1).view(np.uint32 if dtype == "F32" else np.uint16)
    mask: Any = bits.dtype.type(EXPONENTS[dtype])
    return all(not ((bits[at : at + _CHUNK] & mask) == mask).any() for at in range(0, len(bits), _CHUNK))


def dense(words: npt.NDArray[Any], dtype: str) -> Weight:
    """A matrix of F32, F16 or BF16 words as it stands, without a copy."""
    return DenseWeight.load({"values": words}, {"dtype": dtype.lower()})


def to_float32(words: npt.NDArray[Any], dtype: str) -> F32:
    """The float32 value of F32, F16 or BF16 words."""
    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.astype(np.float32)


def grouped(parts: Affine) -> Weight:
    """The integer form that holds `parts` bit for bit: 4-bit codes up to 15, bytes beyond."""
    scale = narrow(parts.scale)
    if parts.bits <= 4:
        return Int4Weight(parts.codes, scale, narrow(parts.minimum), group_size=parts.group)
    if parts.zero is None:
        return Int8Weight(parts.codes.view(np.int8), scale, narrow(parts.minimum), group_size=parts.group)
    # minimum = -zero * scale: the same value from signed codes alone
    codes = (parts.codes - np.uint8(parts.zero)).view(np.int8)  # modulo 256, which int8 reads as the difference
    return Int8Weight(codes, scale, group_size=parts.group)


def narrow(values: F32) -> npt.NDArray[Any]:
    """As float16 where that loses nothing."""
    for part in (values.reshape(-1)[:4096], values):  # most that do not fit show it at once
        with np.errstate(over="ignore"):
            half = part.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), part):
            return values
    return half
