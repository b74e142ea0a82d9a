"""Writes GGUF bytes field by field, so that any field can be wrong; and the hand-made kinds of wrong file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
HUGE = 1 << 40
TOP = (1 << 64) - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value & TOP)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + u32(kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    return u32(kind) + u64(count) + elements


def tensor(name: str | bytes, dimensions: list[int], kind: int = 0, offset: int = 0, rank: int | None = None) -> bytes:
    sizes = b"".join(u64(d) for d in dimensions)
    return string(name) + u32(len(dimensions) if rank is None else rank) + sizes + u32(kind) + u64(offset)


@dataclass
class Raw:
    """A file in parts; `bytes(raw)` joins them."""

    magic: bytes = b"GGUF"
    version: int = 3
    keys: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    key_count: int | None = None
    tensor_count: int | None = None
    data: bytes = b""
    alignment: int = 32

    def __bytes__(self) -> bytes:
        counts = u64(len(self.tensors) if self.tensor_count is None else self.tensor_count)
        counts += u64(len(self.keys) if self.key_count is None else self.key_count)
        head = self.magic + u32(self.version) + counts + b"".join(self.keys) + b"".join(self.tensors)
        if self.tensors:
            head += b"\0" * (-len(head) % self.alignment)
        return head + self.data


def sound(random: np.random.Generator) -> Raw:
    """A small file with every kind of value and several tensors; nothing is wrong with it."""
    strings = [string("s" * int(random.integers(0, 12))) for _ in range(int(random.integers(1, 6)))]
    return Raw(
        keys=[
            key("general.architecture", STRING, string("llama")),
            key("a.u8", U8, b"\x07"),
            key("a.i16", I16, struct.pack("<h", -5)),
            key("a.f32", F32, struct.pack("<f", float(random.normal()))),
            key("a.f64", F64, struct.pack("<d", 2.5)),
            key("a.bool", BOOL, b"\x01"),
            key("a.u64", U64, u64(int(random.integers(0, 1 << 40)))),
            key("a.strings", ARRAY, array(STRING, len(strings), b"".join(strings))),
            key("a.numbers", ARRAY, array(I32, 5, np.arange(5, dtype="<i4").tobytes())),
            key("a.nested", ARRAY, array(ARRAY, 2, array(U8, 2, b"ab") + array(U8, 1, b"c"))),
        ],
        tensors=[tensor("one", [8, 4], 0, 0), tensor("two", [32], 2, 128), tensor("three", [3], 0, 160)],
        data=random.bytes(160 + 12),
    )


def _with(change: Callable[[Raw, np.random.Generator], None]) -> Callable[[np.random.Generator], bytes]:
    def make(random: np.random.Generator) -> bytes:
        raw = sound(random)
        change(raw, random)
        return bytes(raw)

    return make


def _set(name: str, value: Callable[[np.random.Generator], object]) -> Callable[[np.random.Generator], bytes]:
    return _with(lambda raw, random: setattr(raw, name, value(random)))


def _key(make: Callable[[np.random.Generator], bytes]) -> Callable[[np.random.Generator], bytes]:
    return _with(lambda raw, random: raw.keys.insert(int(random.integers(0, len(raw.keys) + 1)), make(random)))


def _tensor(make: Callable[[np.random.Generator], bytes]) -> Callable[[np.random.Generator], bytes]:
    return _with(lambda raw, random: raw.tensors.insert(int(random.integers(0, 4)), make(random)))


def _one(random: np.random.Generator, *values: int) -> int:
    return values[int(random.integers(0, len(values)))]


def _large(random: np.random.Generator) -> int:
    return _one(random, 1 << 27, HUGE, 1 << 61, 1 << 63, TOP, TOP - 7)


def _nested(random: np.random.Generator) -> bytes:
    value = array(U8, 1, b"x")
    for _ in range(int(random.integers(5, 4000))):
        value = array(ARRAY, 1, value)
    return key("deep", ARRAY, value)


WRONG: dict[str, Callable[[np.random.Generator], bytes]] = {
    "bad magic": _set("magic", lambda r: r.bytes(4)),
    "ggml's old magic": _set("magic", lambda r: b"lmgg"),
    "version 0, 1, 4 or more": _set("version", lambda r: _one(r, 0, 1, 4, 5, 1 << 31)),
    "big-endian version": _set("version", lambda r: int.from_bytes(_one(r, 2, 3).to_bytes(4, "big"), "little")),
    "huge key count": _set("key_count", _large),
    "one key too many": _with(lambda raw, r: setattr(raw, "key_count", len(raw.keys) + int(r.integers(1, 9)))),
    "huge tensor count": _set("tensor_count", _large),
    "tensors beyond the file": _with(lambda raw, r: setattr(raw, "tensor_count", 3 + int(r.integers(1, 90)))),
    "huge key length": _key(lambda r: u64(_large(r)) + b"k" + u32(U8) + b"1"),
    "key longer than a name may be": _key(lambda r: key("k" * int(r.integers(1025, 5000)), U8, b"1")),
    "empty key": _key(lambda r: key("", U8, b"1")),
    "key that is not UTF-8": _key(lambda r: key(b"\xff\xfe" + r.bytes(3), U8, b"1")),
    "key twice": _key(lambda r: key("a.u8", U8, b"1")),
    "unknown value type": _key(lambda r: key("k", int(r.integers(13, 1 << 31)), b"12345678")),
    "bool of another value": _key(lambda r: key("k", BOOL, bytes([int(r.integers(2, 256))]))),
    "bools of another value": _key(lambda r: key("k", ARRAY, array(BOOL, 3, b"\0\x01" + bytes([r.integers(2, 256)])))),
    "huge string": _key(lambda r: key("k", STRING, u64(_large(r)) + b"text")),
    "huge array": _key(lambda r: key("k", ARRAY, array(_one(r, U8, F32, U64), _large(r), b"12345678"))),
    "huge array of strings": _key(lambda r: key("k", ARRAY, array(STRING, _large(r), string("x")))),
    "huge array of arrays": _key(lambda r: key("k", ARRAY, array(ARRAY, _large(r), array(U8, 0, b"")))),
    "array of an unknown type": _key(lambda r: key("k", ARRAY, array(int(r.integers(13, 1 << 31)), 1, b"12345678"))),
    "huge string in an array": _key(lambda r: key("k", ARRAY, array(STRING, 2, string("x") + u64(_large(r))))),
    "arrays nested too deep": _key(_nested),
    "alignment that is no power of two": _key(
        lambda r: key("general.alignment", U32, u32(_one(r, 0, 3, 24, 33, 1 << 20, (1 << 32) - 1)))
    ),
    "alignment of another type": _key(lambda r: key("general.alignment", F32, struct.pack("<f", 32.0))),
    "rank 0 or beyond 4": _tensor(lambda r: tensor("t", [1], 0, 192, _one(r, 0, 5, 6, 1 << 20, 1 << 31))),
    "dimension of 0": _tensor(lambda r: tensor("t", [4, 0, 4], 0, 192)),
    "dimensions that overflow": _tensor(lambda r: tensor("t", [1 << 33, 1 << 31], 0, 192)),
    "dimension beyond any": _tensor(lambda r: tensor("t", [_large(r) | 1 << 41], 0, 192)),
    "unknown tensor type": _tensor(lambda r: tensor("t", [256], _one(r, 4, 5, 9, 16, 31, 36, 1 << 31), 192)),
    "rows of no whole blocks": _tensor(lambda r: tensor("t", [_one(r, 1, 31, 33, 255)], 12, 192)),
    "offset off the alignment": _tensor(lambda r: tensor("t", [1], 0, _one(r, 1, 4, 33))),
    "offset beyond the file": _tensor(lambda r: tensor("t", [4], 0, _one(r, 1 << 20, HUGE, 1 << 63, TOP - 31))),
    "tensor larger than the file": _tensor(lambda r: tensor("t", [1 << int(r.integers(12, 39))], 0, 192)),
    "tensor over another": _tensor(lambda r: tensor("t", [4], 0, _one(r, 0, 64))),
    "tensor twice": _tensor(lambda r: tensor("one", [1], 0, 192)),
    "tensor name that is not UTF-8": _tensor(lambda r: tensor(b"\xc3\x28", [1], 0, 192)),
    "empty tensor name": _tensor(lambda r: tensor("", [1], 0, 192)),
}
"""Each makes a file that must be refused, in a hundred variants."""
