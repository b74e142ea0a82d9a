"""`BipolarWeight`: n planes of bits worth +-1 with a scale per group, for activations rounded to m such bits.

A code u of n bits stands for the odd integer V = 2u - (2^n - 1) (bipolar-INT, arXiv 2409.17870). Group k of a row holds
columns k*group_size .. (k+1)*group_size - 1 (the last may be shorter; 0: the row). The exact value is
    value = float32(float64(scale) V + float64(offset))      turned back by `hadamard.turned` where `rotate` > 0

Its product rounds activations: turned, then per row and `act_group` columns to odd multiples of a scale (of 0 where
all are 0). Integers are exact, and scaled segment by segment in one order: the same bits on every machine, for any
batch, and whether bits are counted or codes recovered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.weight import F32
from headway.llm.weights.base import Array, Part, StoredWeight, finite, frozen, register_form, stored_as
from headway.llm.weights.bitplanes import U8, from_planes, to_planes
from headway.llm.weights.grouped import expand, group_count
from headway.llm.weights.hadamard import turned

_FLOATS = (np.dtype(np.float16), np.dtype(np.float32))
I64 = npt.NDArray[np.int64]


@register_form("bipolar")
class BipolarWeight(StoredWeight):
    """Bit planes, scales and perhaps offsets; and how its activations are quantised."""

    def __init__(
        self,
        planes: U8,
        scale: Array,
        offset: Array | None = None,
        *,
        in_features: int,
        group_size: int,
        act_bits: int = 8,
        act_group: int = 64,
        rotate: int = 0,
        clip: int = 1,
    ) -> None:
        """planes: (bits, out, ceil(in/8)). scale, offset: (out, groups), both float16 or both float32.

        rotate: columns of a Hadamard block that the weight has been multiplied with (0: none). clip: 1 to take the best
        of six scales for activations of 2 to 4 bits. Raises `BadInput` for anything else.
        """
        if planes.ndim != 3 or planes.dtype != np.uint8 or not 1 <= planes.shape[0] <= 8:
            raise BadInput(
                f"bipolar weight: planes are {planes.dtype} {planes.shape}, not uint8 (1..8, out, in / 8)",
                "give 1 to 8 planes",
            )
        if not 1 <= act_bits <= 8:
            raise BadInput(f"act_bits={act_bits} is not within 1..8", "use 4 or 8")
        for name, size in (("group_size", group_size), ("act_group", act_group)):
            if size < 0 or size % 32 or size > 32768:
                raise BadInput(f"{name}={size} is not a multiple of 32 up to 32768", "use 64, 128 or 0 for the row")
        if rotate and (rotate < 2 or rotate > 4096 or rotate & (rotate - 1)):
            raise BadInput(f"rotate={rotate} is no power of two up to 4096", "use 64, or 0 for none")
        if clip not in (0, 1):
            raise BadInput(f"clip={clip} is neither 0 nor 1", "use 1 (search) or 0 (largest)")
        bits, out, row_bytes = planes.shape
        if out == 0 or in_features < 1 or row_bytes != (in_features + 7) // 8:
            raise BadInput(
                f"bipolar weight: {out} rows of {row_bytes} bytes do not hold {in_features} columns", "check the shape"
            )
        groups = (out, group_count(in_features, group_size or in_features))
        for name, array in (("scale", scale), ("offset", offset)):
            if array is None:
                continue
            if array.shape != groups or array.dtype not in _FLOATS or array.dtype != scale.dtype:
                raise BadInput(
                    f"bipolar weight: {name} is {array.dtype} {array.shape}, not {scale.dtype} {groups}",
                    "give one number per row and group, all float16 or all float32",
                )
            finite(array, f"bipolar weight: {name}")
        self.shape = (out, in_features)
        self.bits, self.act_bits = bits, act_bits
        self.group_size, self.act_group = group_size, act_group
        self.rotate, self.clip = rotate, clip
        self.planes = frozen(planes)
        self.scale = frozen(scale)
        self.offset = None if offset is None else frozen(offset)

    @classmethod
    def from_codes(cls, codes: U8, scale: Array, offset: Array | None = None, *, bits: int, **more: int) -> Self:
        """codes: (out, in_features), 0 .. 2^bits - 1, each standing for 2 code - (2^bits - 1)."""
        if codes.ndim != 2 or codes.dtype != np.uint8 or not codes.size:
            raise BadInput(f"bipolar weight: codes are {codes.dtype} {codes.shape}, not uint8 (out, in)", "give codes")
        if codes.max() >= 1 << bits:
            raise BadInput(f"bipolar weight: code {codes.max()} does not fit {bits} bits", "give smaller codes")
        return cls(to_planes(codes, bits), scale, offset, in_features=int(codes.shape[1]), **more)

    @classmethod
    def from_affine(cls, codes: U8, scale: Array, minimum: Array, *, bits: int, **more: int) -> Self:
        """value = scale code + minimum, code in 0 .. 2^bits - 1, without loss:
        halves of the scale, offsets minimum + scale (2^bits - 1) / 2.

        Signed integers v are codes v + 2^(bits - 1). Both numbers are kept in float32.
        """
        half = scale.astype(np.float64) / 2
        middle = minimum.astype(np.float64) + half * (2**bits - 1)
        return cls.from_codes(codes, half.astype(np.float32), middle.astype(np.float32), bits=bits, **more)

    def levels(self) -> npt.NDArray[np.int16]:
        """The odd integers V, (out, in_features), as stored (turned where `rotate` > 0)."""
        return self._levels(slice(None))

    def _levels(self, rows: Any) -> npt.NDArray[np.int16]:
        codes = from_planes(self.planes[:, rows], self.shape[1]).astype(np.int16)
        return 2 * codes - np.int16(2**self.bits - 1)

    def dequantize(self) -> F32:
        return self._values(slice(None))

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> F32:
        return self._values(indices)

    def _values(self, rows: Any) -> F32:
        columns, group = self.shape[1], self.group_size or self.shape[1]
        value = self._levels(rows).astype(np.float64)
        value *= expand(self.scale[rows], columns, group)
        if self.offset is not None:
            value += expand(self.offset[rows], columns, group)
        return turned(value.astype(np.float32), self.rotate)

    def integers(self, x: F32) -> I64:
        """sum_k V_w V_x over all columns for activations x (rows, in_features): (rows, out), by the kernels."""
        from headway.kernels.cpu import _cpu

        y: I64 = _cpu.bipolar_integers(self.native(), np.ascontiguousarray(x, np.float32))
        return y

    def parts(self) -> Sequence[Part]:
        scale = Part(self.levels(), self.scale.astype(np.float32))
        return (scale,) if self.offset is None else (scale, Part(None, self.offset.astype(np.float32)))

    def with_numbers(self, numbers: Sequence[F32]) -> Self:
        grids = {name: stored_as(each, self.scale) for name, each in zip(("scale", "offset"), numbers, strict=False)}
        return self.load({**self.tensors(), **grids}, self.meta())

    def tensors(self) -> Mapping[str, Array]:
        found: dict[str, Array] = {"planes": self.planes, "scale": self.scale}
        if self.offset is not None:
            found["offset"] = self.offset
        return found

    def meta(self) -> Mapping[str, str | int | float]:
        return {
            "in_features": self.shape[1],
            "group_size": self.group_size,
            "act_bits": self.act_bits,
            "act_group": self.act_group,
            "rotate": self.rotate,
            "clip": self.clip,
        }

    @classmethod
    def load(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        names = ("in_features", "group_size", "act_bits", "act_group", "rotate", "clip")
        try:
            planes, scale = (np.asarray(tensors[name]) for name in ("planes", "scale"))
            numbers = {name: int(meta[name]) for name in names}
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"bipolar weight: {error} is missing or no number", "save the artifact again") from None
        offset = np.asarray(tensors["offset"]) if "offset" in tensors else None
        return cls(planes, scale, offset, **numbers)

    def _pack(self) -> Any:
        limit = measured_count_rows(self.bits, self.act_bits, self.group_size, self.act_group, _level())
        return self.packed(limit)

    def packed(self, count_rows: int, level: str = "") -> Any:
        """The native weight that counts bits for up to `count_rows` rows of activations, by the kernels `level`."""
        from headway.kernels.cpu import _cpu

        as_bits = np.uint16 if self.scale.dtype == np.float16 else np.float32
        return _cpu.pack_bipolar(
            self.planes,
            self.scale.view(as_bits),
            None if self.offset is None else self.offset.view(as_bits),
            self.shape[1],
            self.group_size,
            self.act_bits,
            self.act_group,
            self.rotate,
            bool(self.clip),
            count_rows,
            level=level,
        )


def quantised_activations(
    x: F32, bits: int, act_group: int, rotate: int, clip: int
) -> tuple[npt.NDArray[np.int16], F32]:
    """What kernels make of activations (rows, columns): odd levels of their turned values, and scales (rows, groups).

    The plain definition, in the kernels' order of operations except where a group is summed (1 bit, and the search).
    """
    x = turned(np.ascontiguousarray(x, np.float32), rotate)
    columns, top = x.shape[1], np.float32(2**bits - 1)
    levels, scales = np.empty(x.shape, np.int16), []
    for begin in range(0, columns, act_group or columns):
        part = x[:, begin : begin + (act_group or columns)]
        scale = np.abs(part).mean(1) if bits == 1 else np.abs(part).max(1) / top
        tried = [scale * np.float32(1 - 0.1 * k) for k in range(6 if clip and 2 <= bits <= 4 else 1)]
        made = [_nearest(part, s, top) for s in tried]
        lost = [np.square(part - s[:, None] * v).sum(1) for s, v in zip(tried, made, strict=True)]
        best = np.argmin(lost, axis=0)
        rows = np.arange(len(x))
        levels[:, begin : begin + part.shape[1]] = np.stack(made)[best, rows]
        scales.append(np.stack(tried)[best, rows])
    return levels, np.stack(scales, axis=1)


def _nearest(x: F32, scale: F32, top: np.float32) -> npt.NDArray[np.int16]:
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 2.0**-100, np.float32(0.5) / scale, np.float32(0)).astype(np.float32)
    codes = np.rint(np.clip(x * inverse[:, None] + np.float32(0.5) * top, 0, top))
    return (2 * np.nan_to_num(codes) - top).astype(np.int16)


def _level() -> str:
    from headway.kernels.cpu import _cpu

    return str(_cpu.bipolar_levels()[-1])


COUNT_ROWS = (1, 2, 4, 8, 16, 32)
"""Batches at which counting and recovering are compared; a weight that counts at the last one always counts."""


@cache
def measured_count_rows(bits: int, act_bits: int, group_size: int, act_group: int, level: str) -> int:
    """Most rows of activations up to which counting bits is the faster way, timed here once for these kernels."""
    from headway.kernels.cpu import _cpu

    rng = np.random.default_rng(0)
    rows, columns = 256, max(1024, group_size, act_group)
    codes = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    scale = np.full((rows, group_count(columns, group_size or columns)), 0.01, np.float16)
    weight = BipolarWeight.from_codes(
        codes, scale, bits=bits, group_size=group_size, act_bits=act_bits, act_group=act_group
    )
    arms = [weight.packed(limit, level) for limit in (1 << 30, 0)]
    found = 0
    for batch in COUNT_ROWS:
        x = rng.standard_normal((batch, columns), dtype=np.float32)
        least = [np.inf, np.inf]
        for _ in range(3):
            for arm, native in enumerate(arms):
                least[arm] = min(least[arm], float(_cpu.time_matmul([[native]], x, 5, 1, True).min()))
        if least[0] > least[1]:
            return found
        found = batch
    return 1 << 30
