"""An open safetensors file: a checked header and views of the memory map.

    u64 header length | JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}} | data

The library reads by path and copies; this reads from a descriptor (so that no link is followed) and copies nothing.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadFile
from headway.core.jsontext import parse_json

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 8

DTYPES: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "u1",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}
"""numpy's type of the stored words; BF16 and the 8-bit floats come as their bits."""


@dataclass(frozen=True)
class StoredTensor:
    """`start` is the byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class SafetensorsFile(Mapping[str, StoredTensor]):
    """Raises `BadFile` naming the byte where the file breaks a rule."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """`descriptor`: the open file; it is closed here. `path` is what errors name."""
        self.path = path
        try:
            size = os.fstat(descriptor).st_size
            if size < 8:
                raise BadFile(path, 0, f"a file of {size} bytes has no header")
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        length = int.from_bytes(self._map[:8], "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BadFile(path, 0, f"a header of {length} bytes in a file of {size}")
        header = parse_json(self._map[8 : 8 + length], path)
        if not isinstance(header, dict):
            raise BadFile(path, 8, "the header is not an object")
        self.metadata = header.pop("__metadata__", {})
        self._tensors = {name: self._tensor(name, entry, 8 + length, size) for name, entry in header.items()}
        self._check_cover(8 + length, size)

    def _tensor(self, name: str, entry: Any, base: int, size: int) -> StoredTensor:
        fine = isinstance(entry, dict) and isinstance(entry.get("dtype"), str)
        shape: Any = entry.get("shape") if fine else None
        offsets: Any = entry.get("data_offsets") if fine else None
        if not (_counts(shape, MAX_RANK) and _counts(offsets, 2) and len(offsets) == 2):
            raise BadFile(self.path, 8, f"tensor {name[:80]!r} is not described by dtype, shape and data_offsets")
        dtype = entry["dtype"]
        if dtype not in DTYPES:
            raise BadFile(self.path, 8, f"tensor {name[:80]!r} has the unknown dtype {dtype[:20]!r}")
        begin, end = offsets
        nbytes = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if end - begin != nbytes or base + end > size:
            raise BadFile(
                self.path, base + begin, f"tensor {name[:80]!r} needs {nbytes} bytes, its offsets are {begin}..{end}"
            )
        return StoredTensor(dtype, tuple(shape), base + begin, nbytes)

    def _check_cover(self, base: int, size: int) -> None:
        """Tensors follow one another without a gap, to the last byte of the file."""
        at = base
        for name, tensor in sorted(self._tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
            if tensor.start != at:
                raise BadFile(self.path, at, f"tensor {name[:80]!r} starts at byte {tensor.start}")
            at += tensor.nbytes
        if at != size:
            raise BadFile(self.path, at, f"{size - at} bytes behind the last tensor")

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def array(self, name: str) -> npt.NDArray[Any]:
        """The stored words as a read-only view of the file (see `DTYPES`)."""
        tensor = self._tensors[name]
        flat = np.frombuffer(self._map, DTYPES[tensor.dtype], math.prod(tensor.shape), tensor.start)
        return flat.reshape(tensor.shape)


def _counts(values: Any, longest: int) -> bool:
    """Whether `values` is a short list of whole numbers that fit 63 bits."""
    return (
        isinstance(values, list)
        and len(values) <= longest
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 62 for v in values)
    )
