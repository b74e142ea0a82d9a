"""`DenseWeight`: a float matrix in float32, float16 or bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.weight import F32
from headway.llm.weights.base import Array, StoredWeight, by_rows, frozen, register_form, take

FloatType = Literal["f32", "f16", "bf16"]


def to_bf16(values: F32) -> npt.NDArray[np.uint16]:
    """float32 -> bfloat16 bits, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bf16(bits: npt.NDArray[np.uint16]) -> F32:
    """bfloat16 bits -> the same values in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@register_form("dense")
class DenseWeight(StoredWeight):
    """A plain matrix. `dtype` is how it is stored; the value is exact in float32 for each of them."""

    def __init__(self, values: npt.NDArray[np.floating[Any]], dtype: FloatType = "f32") -> None:
        """values: (out_features, in_features), rounded to `dtype`."""
        if values.ndim != 2:
            raise BadInput(f"a weight has 2 axes, not {values.ndim}", "reshape it to (out_features, in_features)")
        if dtype == "bf16":
            stored: Array = to_bf16(np.asarray(values, np.float32))
        elif dtype in ("f32", "f16"):
            stored = np.asarray(values, np.float32 if dtype == "f32" else np.float16)
        else:
            raise BadInput(f"no float type {dtype!r}", "types are: f32, f16, bf16")
        self._set(stored, dtype)

    def _set(self, stored: Array, dtype: FloatType) -> None:
        self._stored = frozen(stored)
        self.dtype = dtype
        self.shape = (int(stored.shape[0]), int(stored.shape[1]))

    def _floats(self, stored: Array) -> F32:
        return from_bf16(stored) if self.dtype == "bf16" else stored.astype(np.float32, copy=False)

    def dequantize(self) -> F32:
        return self._floats(self._stored)

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> F32:
        return self._floats(self._stored[indices])

    def matmul(self, x: F32) -> F32:
        y: F32 = x @ self.dequantize().T
        return y

    def tensors(self) -> Mapping[str, Array]:
        return {"values": self._stored}

    def meta(self) -> Mapping[str, str | int | float]:
        return {"dtype": self.dtype}

    @classmethod
    def load(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        dtype = meta.get("dtype", "f32")
        stored = {"f32": "float32", "f16": "float16", "bf16": "uint16"}.get(dtype)
        if stored is None:
            raise BadInput(f"dense weight: no float type {dtype!r}", "types are: f32, f16, bf16")
        weight = cls.__new__(cls)
        weight._set(take(tensors, "values", (stored,), "dense"), dtype)
        return weight

    def _pack(self) -> Any:
        from headway.kernels import cpu

        return cpu.pack_dense(by_rows(self._stored))
