"""`CodedWeight`: a bfloat16 matrix with Huffman-coded exponents (DFloat11), expanded just before each product."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadFile, BadInput
from headway.core.pages import release
from headway.core.weight import F32
from headway.llm.weights.base import Array, StoredWeight, frozen, register_form
from headway.llm.weights.dense import from_bf16
from headway.llm.weights.huffman import U8, pack_lengths, unpack_lengths

U16 = npt.NDArray[np.uint16]

ARRAYS = {"code": "uint8", "sign_mantissa": "uint8", "gaps": "uint8", "positions": "uint32", "codebook": "uint8"}
"""The arrays of a matrix and their data types, one axis each (kernels/cpu/dfloat11.h)."""

BLOCK_BYTES = 4096
"""Bytes of code that are decoded alone: 512 threads of 8 bytes."""


@register_form("dfloat11")
class CodedWeight(StoredWeight):
    """About 10.9 bits a weight, the same bits back. The product is the bfloat16 kernel's own, bit for bit.

    `group` names the matrices that share the codebook. `resident`: kept expanded in memory (its file stays coded).
    """

    def __init__(self, values: U16, lengths: U8, *, group: str = "", resident: bool = False) -> None:
        """values: (out_features, in_features) bfloat16 bits; lengths: a code of all their exponents (`huffman`).

        Raises `BadInput` for a matrix with no weights or with 2^32, ValueError for a code that lacks an exponent.
        """
        from headway.kernels.cpu import _cpu

        if values.ndim != 2 or not values.size or values.size >= 1 << 32:
            raise BadInput(
                f"a matrix of shape {values.shape} cannot be coded", "it has 2 axes and 1 to 2^32 - 1 weights"
            )
        made = _cpu.dfloat11_encode(np.ascontiguousarray(values), np.ascontiguousarray(lengths, np.uint8))
        stored = dict(zip(ARRAYS, made, strict=False))
        self._set({**stored, "codebook": pack_lengths(lengths)}, values.shape, group, resident)

    def _set(self, stored: Mapping[str, Array], shape: tuple[int, ...], group: str, resident: bool) -> None:
        self._stored = {name: frozen(stored[name]) for name in ARRAYS}
        self.shape = (int(shape[0]), int(shape[1]))
        self.group, self.resident = group, resident

    @property
    def lengths(self) -> U8:
        """Bits of the code of each exponent, 0 for those that do not occur."""
        return unpack_lengths(self._stored["codebook"])

    def bits(self) -> U16:
        """The bfloat16 bits, (out_features, in_features)."""
        from headway.kernels.cpu import _cpu

        coded = self.native() if not self.resident else self._coded()
        return _cpu.dfloat11_unpack(coded)  # type: ignore[no-any-return]

    def dequantize(self) -> F32:
        return from_bf16(self.bits())

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> F32:
        return self.native().gather(np.ascontiguousarray(indices, np.int32))  # type: ignore[no-any-return]

    def tensors(self) -> Mapping[str, Array]:
        return self._stored

    def meta(self) -> Mapping[str, str | int | float]:
        return {
            "out_features": self.shape[0],
            "in_features": self.shape[1],
            "group": self.group,
            "resident": int(self.resident),
            "crc32": self._crc(),
        }

    def _crc(self) -> int:
        if not hasattr(self, "_known_crc"):
            self._known_crc = _crc32(self._stored)
        return self._known_crc

    @classmethod
    def load(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        """Raises `BadFile` naming the group for arrays that are not those whose checksum `meta` holds."""
        group = str(meta.get("group", ""))
        for name, dtype in ARRAYS.items():
            array = tensors.get(name)
            if array is None or array.dtype.name != dtype or array.ndim != 1:
                raise _damaged(group, name, 0, f"{name} is missing or not {dtype} with one axis")
        try:
            shape = (int(meta["out_features"]), int(meta["in_features"]))
            crc, resident = int(meta["crc32"]), bool(meta.get("resident", 0))
            unpack_lengths(np.asarray(tensors["codebook"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(group, "codebook", 0, str(error) or repr(error)) from None
        if min(shape) < 1 or shape[0] * shape[1] != len(tensors["sign_mantissa"]):
            raise _damaged(group, "sign_mantissa", 0, f"{len(tensors['sign_mantissa'])} weights, the shape is {shape}")
        weight = cls.__new__(cls)
        weight._set({name: np.asarray(tensors[name]) for name in ARRAYS}, shape, group, resident)
        found = weight._crc()
        if found != crc:
            raise _damaged(group, "code", 0, f"the checksum is {found:#010x}, not {crc:#010x}")
        return weight

    def _coded(self) -> Any:
        """The coded form in native memory; decodes all of it once, which checks it. Raises `BadFile`."""
        from headway.kernels.cpu import _cpu

        arrays = [self._stored[name] for name in ("code", "sign_mantissa", "gaps", "positions")]
        try:
            return _cpu.pack_dfloat11(*arrays, self.lengths, *self.shape)
        except ValueError as error:
            if len(error.args) == 2:
                block, rule = error.args
                raise _damaged(self.group, "code", BLOCK_BYTES * block, f"block {block}: {rule}") from None
            raise _damaged(self.group, "code", 0, str(error)) from None

    def _pack(self) -> Any:
        from headway.kernels import cpu
        from headway.kernels.cpu import _cpu

        if not self.resident:
            packed = self._coded()
            kept = zip(("code", "sign_mantissa"), _cpu.dfloat11_views(packed), strict=True)
            for name, view in kept:  # one copy is enough: these are the same bytes in native memory
                release(self._stored[name])
                self._stored[name] = frozen(view)
            return packed

        return cpu.pack_dense(_cpu.dfloat11_unpack(self._coded()))


def _crc32(arrays: Mapping[str, Array]) -> int:
    crc = 0
    for name in ARRAYS:
        crc = zlib.crc32(arrays[name].view(np.uint8).data, crc)
    return crc


def _damaged(group: str, array: str, offset: int, rule: str) -> BadFile:
    return BadFile(
        f"dfloat11 group {group or '(one matrix)'}, {array}", offset, rule, "save or fetch the artifact again"
    )
