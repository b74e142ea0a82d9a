"""Integer codes with a float scale and minimum per group of columns: `Int8Weight` and `Int4Weight`.

Group k of a row holds columns k*group_size .. (k+1)*group_size - 1 (the last may be shorter). The exact value is
    value = float32(float32(code) * float32(scale)) + float32(minimum)
in float32 with both roundings, which is how GGUF's Q4_0 .. Q6_K are defined too, so that those blocks become weights
of these forms without changing a bit of their value.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.weight import F32
from headway.llm.weights.base import (
    Array,
    Part,
    StoredWeight,
    by_rows,
    finite,
    frozen,
    register_form,
    stored_as,
    take,
)


def group_count(in_features: int, group_size: int) -> int:
    return -(-in_features // group_size)


def expand(per_group: Array, in_features: int, group_size: int) -> F32:
    """(out, groups) -> (out, in_features) float32: each group's number beside each of its columns."""
    return np.repeat(per_group.astype(np.float32, copy=False), group_size, axis=1)[:, :in_features]


class GroupedWeight(StoredWeight):
    """What the integer forms share. `scale` and `minimum`: (out, groups), float16 or float32."""

    group_size: int
    scale: Array
    minimum: Array | None

    def _set(self, shape: tuple[int, int], scale: Array, minimum: Array | None, group_size: int) -> None:
        if group_size < 16 or group_size % 16:
            raise BadInput(f"group_size={group_size} is not a multiple of 16", "use 16, 32, 64 or 128")
        groups = (shape[0], group_count(shape[1], group_size))
        for name, array in (("scale", scale), ("minimum", minimum)):
            if array is None:
                continue
            if array.shape != groups or array.dtype not in (np.float16, np.float32):
                raise BadInput(
                    f"{self.form} weight: {name} is {array.dtype} {array.shape}, not f16 or f32 {groups}",
                    "give one number per row and group",
                )
            finite(array, f"{self.form} weight: {name}")
        self.shape = shape
        self.group_size = group_size
        self.scale = frozen(scale)
        self.minimum = None if minimum is None else frozen(minimum)

    @abstractmethod
    def codes(self) -> Array:
        """The integers, (out, in_features): int8 for `Int8Weight`, uint8 0..15 for `Int4Weight`."""

    @abstractmethod
    def _codes_of(self, rows: Any) -> Array:
        """Those of some rows."""

    def _value(self, codes: Array, scale: Array, minimum: Array | None) -> F32:
        value = codes.astype(np.float32)
        value *= expand(scale, self.shape[1], self.group_size)
        if minimum is not None:
            value += expand(minimum, self.shape[1], self.group_size)
        return value

    def dequantize(self) -> F32:
        return self._value(self.codes(), self.scale, self.minimum)

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> F32:
        minimum = None if self.minimum is None else self.minimum[indices]
        return self._value(self._codes_of(indices), self.scale[indices], minimum)

    def parts(self) -> Sequence[Part]:
        codes = self.codes()
        centre = 7.5 if codes.dtype == np.uint8 else 0.0
        scale = Part(codes, self.scale.astype(np.float32), centre)
        return (scale,) if self.minimum is None else (scale, Part(None, self.minimum.astype(np.float32)))

    def with_numbers(self, numbers: Sequence[F32]) -> Self:
        grids = zip(self._grids().items(), numbers, strict=True)
        return self.load({**self.tensors(), **{name: stored_as(each, old) for (name, old), each in grids}}, self.meta())

    def meta(self) -> Mapping[str, str | int | float]:
        return {"group_size": self.group_size, "in_features": self.shape[1]}

    def _grids(self) -> dict[str, Array]:
        grids = {"scale": self.scale}
        if self.minimum is not None:
            grids["minimum"] = self.minimum
        return grids


def _sizes(meta: Mapping[str, Any], form: str) -> tuple[int, int]:
    try:
        return int(meta["group_size"]), int(meta["in_features"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{form} weight: no group_size or in_features", "save the artifact again") from None


@register_form("int8")
class Int8Weight(GroupedWeight):
    """Signed bytes -128..127 with a scale and, where the grid has one, a minimum per group."""

    def __init__(
        self,
        codes: npt.NDArray[np.int8],
        scale: Array,
        minimum: Array | None = None,
        *,
        group_size: int,
    ) -> None:
        """codes: (out, in_features); scale, minimum: (out, ceil(in_features / group_size))."""
        if codes.ndim != 2 or codes.dtype != np.int8:
            raise BadInput(f"int8 weight: codes are {codes.dtype} with {codes.ndim} axes", "give int8 (out, in)")
        self._set((int(codes.shape[0]), int(codes.shape[1])), scale, minimum, group_size)
        self._codes = frozen(codes)

    def codes(self) -> npt.NDArray[np.int8]:
        return self._codes

    def _codes_of(self, rows: Any) -> Array:
        return self._codes[rows]

    def tensors(self) -> Mapping[str, Array]:
        return {"codes": self._codes, **self._grids()}

    @classmethod
    def load(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        group_size, _ = _sizes(meta, "int8")
        grid = ("float16", "float32")
        minimum = take(tensors, "minimum", grid, "int8") if "minimum" in tensors else None
        return cls(
            take(tensors, "codes", ("int8",), "int8"),
            take(tensors, "scale", grid, "int8"),
            minimum,
            group_size=group_size,
        )

    def _pack(self) -> Any:
        from headway.kernels import cpu

        return cpu.pack_int8(by_rows(self._codes), self.scale, self.minimum, self.group_size)


@register_form("int4")
class Int4Weight(GroupedWeight):
    """Codes 0..15, two to a byte (the even column in the low half), with a scale and a minimum per group."""

    minimum: Array

    def __init__(self, codes: npt.NDArray[np.uint8], scale: Array, minimum: Array, *, group_size: int) -> None:
        """codes: (out, in_features), 0..15; scale, minimum: (out, ceil(in_features / group_size))."""
        if codes.ndim != 2 or codes.dtype != np.uint8:
            raise BadInput(f"int4 weight: codes are {codes.dtype} with {codes.ndim} axes", "give uint8 (out, in)")
        if codes.size and codes.max() > 15:
            raise BadInput(f"int4 weight: code {codes.max()} is over 15", "give 4-bit codes")
        self._set((int(codes.shape[0]), int(codes.shape[1])), scale, minimum, group_size)
        even = np.zeros((codes.shape[0], codes.shape[1] + codes.shape[1] % 2), np.uint8)
        even[:, : codes.shape[1]] = codes
        self._nibbles = frozen(even[:, 0::2] | (even[:, 1::2] << 4))

    def codes(self) -> npt.NDArray[np.uint8]:
        return self._codes_of(slice(None))

    def _codes_of(self, rows: Any) -> npt.NDArray[np.uint8]:
        nibbles = self._nibbles[rows]
        codes = np.empty((nibbles.shape[0], 2 * nibbles.shape[1]), np.uint8)
        codes[:, 0::2] = nibbles & 15
        codes[:, 1::2] = nibbles >> 4
        return codes[:, : self.shape[1]]

    def tensors(self) -> Mapping[str, Array]:
        return {"codes": self._nibbles, **self._grids()}

    @classmethod
    def load(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        group_size, in_features = _sizes(meta, "int4")
        nibbles = take(tensors, "codes", ("uint8",), "int4")
        if nibbles.shape[1] != (in_features + 1) // 2:
            raise BadInput(
                f"int4 weight: {nibbles.shape[1]} bytes a row do not hold {in_features} codes",
                "save the artifact again",
            )
        grid = ("float16", "float32")
        weight = cls.__new__(cls)
        weight._set(
            (int(nibbles.shape[0]), in_features),
            take(tensors, "scale", grid, "int4"),
            take(tensors, "minimum", grid, "int4"),
            group_size,
        )
        weight._nibbles = frozen(nibbles)
        return weight

    def _pack(self) -> Any:
        from headway.kernels import cpu

        codes = replace(by_rows(self._nibbles, self._codes_of), shape=self.shape)
        return cpu.pack_int4(codes, self.scale, self.minimum, self.group_size)
