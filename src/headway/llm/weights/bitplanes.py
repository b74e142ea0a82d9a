"""`BitPlanes`: weights of 1 to 4 bits as planes of single bits with floats per group, multiplied by table look-ups.

Group k of a row holds columns k*group_size .. (k+1)*group_size - 1 (the last may be shorter). Two grids (LUT-GEMM,
arXiv 2206.09557, section 3; the binary code is "BCQ"):
    uniform      value = float32(float32(code) * float32(scale)) + float32(offset),  code = sum_i 2^i u_i
    non-uniform  value = sum_i alpha_i b_i + offset,                                 b_i = 2 u_i - 1
The bits u_i are plane i. A uniform weight is the special case alpha_i = scale 2^i / 2; it is kept apart because it
needs two floats per group instead of bits + 1, and one multiplication per group in the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.weight import F32
from headway.llm.weights.base import Array, Part, StoredWeight, finite, frozen, register_form, stored_as
from headway.llm.weights.grouped import expand, group_count

U8 = npt.NDArray[np.uint8]
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32))


def to_planes(codes: U8, bits: int) -> U8:
    """Codes (out, in) below 2^bits -> planes (bits, out, ceil(in / 8)); bit c of a row is bit c % 8 of byte c // 8."""
    return np.stack([np.packbits((codes >> i) & 1, axis=1, bitorder="little") for i in range(bits)])


def from_planes(planes: U8, columns: int) -> U8:
    """The inverse of `to_planes`: (bits, rows, bytes) -> codes (rows, columns)."""
    codes = np.zeros((planes.shape[1], columns), np.uint8)
    for i, plane in enumerate(planes):
        codes |= np.unpackbits(plane, axis=1, count=columns, bitorder="little") << i
    return codes


@register_form("bitplanes")
class BitPlanes(StoredWeight):
    """Bit planes with a scale (or one alpha per plane) and an offset per group; in_features need fit no tile.

    `table_group` (32 or 64 columns) share one scale of the int8 tables. From `crossover` activation rows on, a uniform
    weight with groups of a multiple of 32 is multiplied densely in integers (0: never), which rounds activations
    otherwise: results then depend on how many rows come together.
    """

    def __init__(
        self,
        planes: U8,
        scale: Array,
        offset: Array,
        *,
        in_features: int,
        group_size: int,
        table_group: int = 32,
        crossover: int = 0,
    ) -> None:
        """planes: (bits, out, ceil(in/8)). scale: (out, groups), or alphas (bits, out, groups). offset: (out, groups).

        scale and offset are both float16 or both float32. Raises `BadInput` for anything else.
        """
        if planes.ndim != 3 or planes.dtype != np.uint8 or not 1 <= planes.shape[0] <= 4:
            raise BadInput(
                f"bitplanes weight: planes are {planes.dtype} {planes.shape}, not uint8 (1..4, out, in / 8)",
                "give 1 to 4 planes",
            )
        if group_size < 4 or group_size % 4:
            raise BadInput(f"group_size={group_size} is not a multiple of 4", "use 32, 64 or 128")
        if table_group not in (32, 64):
            raise BadInput(f"table_group={table_group} is neither 32 nor 64", "use 32 (closer) or 64 (faster)")
        if crossover < 0:
            raise BadInput(f"crossover={crossover} is negative", "give a number of rows, or 0 for never")
        bits, out, row_bytes = planes.shape
        if out == 0 or in_features < 1 or row_bytes != (in_features + 7) // 8:
            raise BadInput(
                f"bitplanes weight: {out} rows of {row_bytes} bytes do not hold {in_features} columns",
                "check the shape",
            )
        groups = (out, group_count(in_features, group_size))
        uniform = scale.ndim == 2
        for name, array, shape in (
            ("scale", scale, groups if uniform else (bits, *groups)),
            ("offset", offset, groups),
        ):
            if array.shape != shape or array.dtype not in _FLOATS or array.dtype != offset.dtype:
                raise BadInput(
                    f"bitplanes weight: {name} is {array.dtype} {array.shape}, not {offset.dtype} {shape}",
                    "give one number per row and group, all float16 or all float32",
                )
            finite(array, f"bitplanes weight: {name}")
        self.shape = (out, in_features)
        self.bits = bits
        self.group_size = group_size
        self.table_group = table_group
        self.crossover = crossover
        self.planes = frozen(planes)
        self.scale = frozen(scale)
        self.offset = frozen(offset)

    @classmethod
    def from_codes(
        cls,
        codes: U8,
        scale: Array,
        offset: Array,
        *,
        bits: int,
        group_size: int,
        table_group: int = 32,
        crossover: int = 0,
    ) -> Self:
        """A uniform weight. codes: (out, in_features), 0 .. 2^bits - 1; scale, offset: (out, groups)."""
        if codes.ndim != 2 or codes.dtype != np.uint8 or not codes.size:
            raise BadInput(
                f"bitplanes weight: codes are {codes.dtype} {codes.shape}, not uint8 (out, in)", "give codes"
            )
        if codes.max() >= 1 << bits:
            raise BadInput(f"bitplanes weight: code {codes.max()} does not fit {bits} bits", "give smaller codes")
        return cls(
            to_planes(codes, bits),
            scale,
            offset,
            in_features=int(codes.shape[1]),
            group_size=group_size,
            table_group=table_group,
            crossover=crossover,
        )

    @property
    def uniform(self) -> bool:
        return self.scale.ndim == 2

    def codes(self) -> U8:
        """The planes as integers, (out, in_features): sum_i 2^i u_i."""
        return from_planes(self.planes, self.shape[1])

    def to_binary(self) -> Self:
        """The same weight with one alpha per plane: alpha_i = scale 2^i / 2, offset' = offset + sum_i alpha_i.

        The bits and the alphas are exact; offset' is rounded to float32 once.
        """
        if not self.uniform:
            return self
        scale = self.scale.astype(np.float32)
        alphas = np.stack([scale * np.float32(2.0**i / 2) for i in range(self.bits)])
        total = self.offset.astype(np.float64) + self.scale.astype(np.float64) * ((2**self.bits - 1) / 2)
        return type(self)(
            self.planes,
            alphas,
            total.astype(np.float32),
            in_features=self.shape[1],
            group_size=self.group_size,
            table_group=self.table_group,
            crossover=self.crossover,
        )

    def dequantize(self) -> F32:
        return self._values(slice(None))

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> F32:
        return self._values(indices)

    def _values(self, rows: Any) -> F32:
        columns, group = self.shape[1], self.group_size
        offset = expand(self.offset[rows], columns, group)
        codes = from_planes(self.planes[:, rows], columns)
        if self.uniform:
            value = codes.astype(np.float32)
            value *= expand(self.scale[rows], columns, group)
        else:
            value = np.zeros(offset.shape, np.float32)
            for i in range(self.bits):
                alpha = expand(self.scale[i, rows], columns, group)
                value += np.where((codes >> i) & 1, alpha, -alpha)
        value += offset
        return value

    def matmul_float(self, x: F32) -> F32:
        """`matmul` with tables in float32: what the algorithm gives before its tables are rounded to int8."""
        from headway.kernels.cpu import _cpu

        y: F32 = _cpu.lut_matmul_float(self.native(), np.ascontiguousarray(x, np.float32))
        return y

    def parts(self) -> Sequence[Part]:
        offset = Part(None, self.offset.astype(np.float32))
        if self.uniform:
            return Part(self.codes(), self.scale.astype(np.float32), (2**self.bits - 1) / 2), offset
        signs = [2 * from_planes(plane[None], self.shape[1]).astype(np.int8) - 1 for plane in self.planes]
        return *(Part(b, a.astype(np.float32)) for b, a in zip(signs, self.scale, strict=True)), offset

    def with_numbers(self, numbers: Sequence[F32]) -> Self:
        *scales, offset = numbers
        scale = scales[0] if self.uniform else np.stack(scales)
        grids = {"scale": stored_as(scale, self.scale), "offset": stored_as(offset, self.offset)}
        return self.load({**self.tensors(), **grids}, self.meta())

    def tensors(self) -> Mapping[str, Array]:
        return {"planes": self.planes, "scale": self.scale, "offset": self.offset}

    def meta(self) -> Mapping[str, str | int | float]:
        return {
            "in_features": self.shape[1],
            "group_size": self.group_size,
            "table_group": self.table_group,
            "crossover": self.crossover,
        }

    @classmethod
    def load(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        try:
            planes, scale, offset = (np.asarray(tensors[name]) for name in ("planes", "scale", "offset"))
            numbers = {name: int(meta[name]) for name in ("in_features", "group_size", "table_group", "crossover")}
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"bitplanes weight: {error} is missing or no number", "save the artifact again") from None
        return cls(planes, scale, offset, **numbers)

    def _pack(self) -> Any:
        from headway.kernels.cpu import _cpu

        scale = self.scale[None] if self.uniform else self.scale
        as_bits = np.uint16 if self.offset.dtype == np.float16 else np.float32
        return _cpu.pack_lut(
            self.planes,
            np.ascontiguousarray(scale).view(as_bits),
            self.offset.view(as_bits),
            self.shape[1],
            self.group_size,
            self.uniform,
            self.table_group,
            self.crossover,
        )
