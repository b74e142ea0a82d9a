"""Reads a GGUF header (version 2 or 3) from untrusted bytes.

    "GGUF" | u32 version | u64 tensor count | u64 key count
    key count    x  string key | u32 type | value
    tensor count x  string name | u32 rank | u64 dimension x rank (fastest first) | u32 type | u64 offset
    padding to `general.alignment` | data; tensor offsets count from here

    string = u64 length | bytes;  array = u32 element type | u64 count | elements

Every count is held against the bytes that are left before anything is made of it, values stay in the file
until they are asked for, and nothing but `BadFile` leaves this module.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadFile
from headway.llm.gguf.blocks import BLOCKS, type_name

MAX_KEYS = 1 << 13
MAX_TENSORS = 1 << 14
MAX_NAME_BYTES = 1 << 10
MAX_STRING_BYTES = 1 << 24
MAX_ELEMENTS = 1 << 26
MAX_RANK = 4
MAX_DEPTH = 4
MAX_DIMENSION = 1 << 40
MAX_ALIGNMENT = 1 << 16

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS: dict[int, str] = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    BOOL: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
SIZES = {kind: np.dtype(name).itemsize for kind, name in SCALARS.items()}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Value:
    """Where a value lies: `start` is its first byte; for an array, `kind` is the elements' and `count` >= 0."""

    kind: int
    start: int
    count: int = -1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` in numpy's order (slowest first); `start` is an absolute byte offset, inside the file with `nbytes`."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    nbytes: int


class _Cursor:
    """A position in the file that cannot leave it."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.end = len(data)
        self.at = 0

    def fail(self, rule: str, at: int | None = None) -> BadFile:
        return BadFile(self.path, self.at if at is None else at, rule)

    def need(self, count: int, what: str) -> None:
        if count > self.end - self.at:
            raise self.fail(f"{what} needs {count} bytes, the file has {self.end - self.at} left")

    def u32(self, what: str) -> int:
        self.need(4, what)
        (value,) = _U32.unpack_from(self.data, self.at)
        self.at += 4
        return int(value)

    def u64(self, what: str) -> int:
        self.need(8, what)
        (value,) = _U64.unpack_from(self.data, self.at)
        self.at += 8
        return int(value)

    def skip_string(self, what: str, limit: int) -> tuple[int, int]:
        """Start and end of the string's bytes."""
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise self.fail(f"{what} has {length} bytes, the limit is {limit}", self.at - 8)
        self.need(length, what)
        start = self.at
        self.at += length
        return start, self.at

    def name(self, what: str) -> str:
        start, end = self.skip_string(what, MAX_NAME_BYTES)
        if start == end:
            raise self.fail(f"{what} is empty", start)
        return self.text(start, end, what)

    def text(self, start: int, end: int, what: str) -> str:
        try:
            return str(self.data[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8", start + error.start) from None

    def skip_array(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise self.fail(f"arrays nested deeper than {MAX_DEPTH}")
        kind = self.u32("an array's element type")
        known = kind in SCALARS or kind in (STRING, ARRAY)
        if not known:
            raise self.fail(f"unknown element type {kind}", self.at - 4)
        count = self.u64("an array's length")
        least = SIZES.get(kind, 8 if kind == STRING else 12)
        if count > MAX_ELEMENTS or count * least > self.end - self.at:
            raise self.fail(
                f"an array of {count} elements, {self.end - self.at} bytes are left (limit {MAX_ELEMENTS})", self.at - 8
            )
        start = self.at
        if kind == STRING:
            self._skip_strings(count)
        elif kind == ARRAY:
            for _ in range(count):
                self.skip_array(depth + 1)
        else:
            self.at += count * least
            if kind == BOOL and count and np.frombuffer(self.data, np.uint8, count, start).max() > 1:
                raise self.fail("an array of bool holds a byte other than 0 and 1", start)
        return Value(kind, start, count)

    def _skip_strings(self, count: int) -> None:
        unpack, data, end, at = _U64.unpack_from, self.data, self.end, self.at
        for _ in range(count):
            if at + 8 > end:
                self.at = at
                raise self.fail("the length of a string in an array runs past the end of the file")
            length = unpack(data, at)[0]
            at += 8
            if length > MAX_STRING_BYTES or length > end - at:
                raise self.fail(f"a string of {length} bytes in an array, {end - at} bytes are left", at - 8)
            at += length
        self.at = at

    def value(self, key: str) -> Value:
        kind = self.u32(f"the type of {key}")
        if kind == ARRAY:
            return self.skip_array(1)
        start = self.at
        if kind == STRING:
            self.skip_string(f"the value of {key}", MAX_STRING_BYTES)
        elif kind in SCALARS:
            self.need(SIZES[kind], f"the value of {key}")
            self.at += SIZES[kind]
            if kind == BOOL and self.data[start] > 1:
                raise self.fail(f"{key} is a bool of value {self.data[start]}", start)
        else:
            raise self.fail(f"{key} has the unknown type {kind}", self.at - 4)
        return Value(kind, start)


class Header(Mapping[str, Value]):
    """The parsed header: a mapping of keys, `tensors` by name, and typed access to the values.

    `data` must stay valid and unchanged for as long as the object lives (a memory map).
    """

    def __init__(self, path: Path, data: memoryview) -> None:
        cursor = _Cursor(path, data)
        self._cursor = cursor
        self.path = path
        self.version, tensors, keys = _counts(cursor)
        self._values: dict[str, Value] = {}
        for _ in range(keys):
            at = cursor.at
            key = cursor.name("a key")
            if key in self._values:
                raise cursor.fail(f"the key {key!r} comes twice", at)
            self._values[key] = cursor.value(key)
        self.alignment = self._alignment()
        self.tensors: dict[str, TensorInfo] = _tensors(cursor, tensors, self.alignment)

    def _alignment(self) -> int:
        if "general.alignment" not in self._values:
            return 32
        value = self.integer("general.alignment")
        if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise self.fault("general.alignment", f"is {value}, not a power of two up to {MAX_ALIGNMENT}")
        return value

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def fault(self, key: str, what: str) -> BadFile:
        """The error that `key`'s value is not usable, with the byte where it lies."""
        value = self._values.get(key)
        return self._cursor.fail(f"{key} {what}", value.start if value else 0)

    def _scalar(self, key: str, kinds: str) -> Any:
        value = self._values.get(key)
        if value is None:
            raise self.fault(key, "is missing")
        if value.count >= 0 or value.kind not in SCALARS or np.dtype(SCALARS[value.kind]).kind not in kinds:
            raise self.fault(key, f"has the wrong type ({value.kind}{', array' if value.count >= 0 else ''})")
        return np.frombuffer(self._cursor.data, SCALARS[value.kind], 1, value.start)[0].item()

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of any width; `default`, where given, stands for a missing key."""
        if default is not None and key not in self._values:
            return default
        return int(self._scalar(key, "ui"))

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        if default is not None and key not in self._values:
            return default
        value = float(self._scalar(key, "fui"))
        if not math.isfinite(value):
            raise self.fault(key, f"is {value}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        if key not in self._values:
            return default
        return bool(self._scalar(key, "u"))

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key)
        if value is None:
            if default is not None:
                return default
            raise self.fault(key, "is missing")
        if value.kind != STRING or value.count >= 0:
            raise self.fault(key, "is not a string")
        (length,) = _U64.unpack_from(self._cursor.data, value.start)
        return self._cursor.text(value.start + 8, value.start + 8 + length, key)

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        value = self._array(key)
        if value.kind != STRING and value.count:
            raise self.fault(key, "is not an array of strings")
        texts, at, data = [], value.start, self._cursor.data
        for _ in range(value.count):
            (length,) = _U64.unpack_from(data, at)
            texts.append(self._cursor.text(at + 8, at + 8 + length, f"an element of {key}"))
            at += 8 + length
        return texts

    def texts_at(self, key: str, wanted: Collection[int]) -> dict[int, str]:
        """Some elements of an array of strings, by index; an index beyond the array is left out."""
        value = self._array(key)
        if value.kind != STRING and value.count:
            raise self.fault(key, "is not an array of strings")
        found, at, data, unpack = {}, value.start, self._cursor.data, _U64.unpack_from
        for index in range(min(value.count, max(wanted, default=-1) + 1)):
            length = unpack(data, at)[0]
            if index in wanted:
                found[index] = self._cursor.text(at + 8, at + 8 + length, f"an element of {key}")
            at += 8 + length
        return found

    def numbers(self, key: str) -> npt.NDArray[Any]:
        """An array of numbers, as a read-only view of the file."""
        value = self._array(key)
        if value.kind not in SCALARS:
            raise self.fault(key, "is not an array of numbers")
        return np.frombuffer(self._cursor.data, SCALARS[value.kind], value.count, value.start)

    def _array(self, key: str) -> Value:
        value = self._values.get(key)
        if value is None:
            raise self.fault(key, "is missing")
        if value.count < 0:
            raise self.fault(key, "is not an array")
        return value


def _counts(cursor: _Cursor) -> tuple[int, int, int]:
    cursor.need(4, "the magic")
    if bytes(cursor.data[:4]) != b"GGUF":
        raise cursor.fail("the file does not begin with 'GGUF'")
    cursor.at = 4
    version = cursor.u32("the version")
    if version not in (2, 3):
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3)
        raise cursor.fail("a big-endian file" if big_endian else f"version {version}, not 2 or 3", 4)
    tensors = cursor.u64("the tensor count")
    if tensors > MAX_TENSORS or tensors * 33 > cursor.end - cursor.at:
        raise cursor.fail(f"{tensors} tensors do not fit ({MAX_TENSORS} at most)", 8)
    keys = cursor.u64("the key count")
    if keys > MAX_KEYS or keys * 14 > cursor.end - cursor.at:
        raise cursor.fail(f"{keys} keys do not fit ({MAX_KEYS} at most)", 16)
    return version, tensors, keys


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    found: dict[str, tuple[tuple[int, ...], int, int, int, int]] = {}
    for _ in range(count):
        at = cursor.at
        name = cursor.name("a tensor name")
        if name in found:
            raise cursor.fail(f"the tensor {name!r} comes twice", at)
        found[name] = _tensor(cursor, name, alignment)
    data_start = -(-cursor.at // alignment) * alignment
    if count and data_start > cursor.end:
        raise cursor.fail("the file ends before the tensor data")
    tensors = {}
    for name, (shape, kind, offset, nbytes, at) in found.items():
        if data_start + offset + nbytes > cursor.end:
            raise cursor.fail(
                f"tensor {name!r} ends at byte {data_start + offset + nbytes} of a file of {cursor.end}", at
            )
        tensors[name] = TensorInfo(name, shape, kind, data_start + offset, nbytes)
    last = data_start
    for info in sorted(tensors.values(), key=lambda info: info.start):
        if info.start < last:
            raise cursor.fail(f"tensor {info.name!r} lies over another one", found[info.name][4])
        last = info.start + info.nbytes
    return tensors


def _tensor(cursor: _Cursor, name: str, alignment: int) -> tuple[tuple[int, ...], int, int, int, int]:
    rank = cursor.u32(f"the rank of {name!r}")
    if not 1 <= rank <= MAX_RANK:
        raise cursor.fail(f"tensor {name!r} has rank {rank}, not 1..{MAX_RANK}", cursor.at - 4)
    dimensions = [cursor.u64(f"a dimension of {name!r}") for _ in range(rank)]
    if not all(1 <= size <= MAX_DIMENSION for size in dimensions):
        raise cursor.fail(f"tensor {name!r} has a dimension outside 1..{MAX_DIMENSION}", cursor.at - 8 * rank)
    kind = cursor.u32(f"the type of {name!r}")
    if kind not in BLOCKS:
        known = ", ".join(block.name for block in BLOCKS.values())
        raise cursor.fail(f"tensor {name!r} has the type {type_name(kind)}; read are {known}", cursor.at - 4)
    block = BLOCKS[kind]
    if dimensions[0] % block.size:
        raise cursor.fail(
            f"tensor {name!r}: rows of {dimensions[0]} are no whole {block.name} blocks of {block.size}", cursor.at - 4
        )
    nbytes = math.prod(dimensions) // block.size * block.nbytes
    offset = cursor.u64(f"the offset of {name!r}")
    if offset % alignment:
        raise cursor.fail(f"tensor {name!r} starts at {offset}, no multiple of {alignment}", cursor.at - 8)
    return tuple(reversed(dimensions)), kind, offset, nbytes, cursor.at - 8
