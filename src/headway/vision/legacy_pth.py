"""Reads the tensors of an old `.pth` checkpoint (torch before 1.6, not a zip) without unpickling it.

File: three small pickles (magic, version, system), one pickle that describes a dictionary of tensors, one with the
list of storage keys, then per key an int64 count and that many little-endian values. The description is walked
opcode by opcode as data: names of classes stay strings, nothing is imported and nothing is called.
"""

from __future__ import annotations

import io
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadFile
from headway.core.files import read_bytes

Array = npt.NDArray[Any]
LIMIT = 1 << 30

_DTYPES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
}
_CONSTANTS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINUNICODE",
    "GLOBAL",
}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Mark:
    """Marker on the stack."""


def read_legacy_pth(path: Path) -> dict[str, Array]:
    """Tensors by name. Raises `BadFile` with the byte for anything but a plain dictionary of tensors."""
    try:
        return _read(path, read_bytes(path, limit=LIMIT))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadFile(path, 0, f"not a checkpoint ({error})") from None


def _read(path: Path, data: bytes) -> dict[str, Array]:
    file = io.BytesIO(data)
    for _ in range(3):
        _walk(file, path)
    described = _walk(file, path)
    keys = _walk(file, path)
    if not isinstance(described, dict) or not isinstance(keys, list):
        raise BadFile(path, file.tell(), "not a dictionary of tensors")
    storages: dict[str, tuple[int, int]] = {}
    for key in keys:
        start = file.tell()
        count = int.from_bytes(file.read(8), "little")
        size = count * _storage_dtype(described, key, path, start).itemsize
        if start + 8 + size > len(data):
            raise BadFile(path, start, f"storage {key!r} reaches beyond the end of the file")
        storages[key] = (start + 8, count)
        file.seek(size, io.SEEK_CUR)
    return {str(name): _tensor(form, storages, data, path) for name, form in described.items() if _is_tensor(form)}


def _is_tensor(form: Any) -> bool:
    return isinstance(form, tuple) and len(form) == 3 and form[0] == "call" and form[1] == _REBUILD


_REBUILD = "torch._utils _rebuild_tensor_v2"


def _storage_dtype(described: dict[Any, Any], key: str, path: Path, offset: int) -> np.dtype[Any]:
    for form in described.values():
        if _is_tensor(form) and form[2][0][1][2] == key:
            return _dtype(form[2][0][1][1], path, offset)
    raise BadFile(path, offset, f"storage {key!r} belongs to no tensor")


def _dtype(name: str, path: Path, offset: int) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise BadFile(path, offset, f"storage type {name!r} is not read")
    return _DTYPES[name]


def _tensor(form: Any, storages: dict[str, tuple[int, int]], data: bytes, path: Path) -> Array:
    """form: ("call", rebuild, (("storage", (...)), offset, shape, strides, ...)); strides count elements."""
    storage, offset, shape, strides = form[2][:4]
    _, kind, key, _, _, _ = storage[1]
    dtype = _dtype(kind, path, 0)
    start, count = storages.get(key, (0, 0))
    last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
    if min((*shape, *strides, offset), default=0) < 0 or (0 not in shape and last >= count):
        raise BadFile(path, start, f"a tensor of shape {shape} leaves its storage {key!r}")
    values = np.frombuffer(data, dtype, count, start)[offset:]
    view = np.lib.stride_tricks.as_strided(values, shape, [stride * dtype.itemsize for stride in strides])
    return np.array(view, order="C")


def _walk(file: io.BytesIO, path: Path) -> Any:
    """One pickle as data: dictionaries, lists and tuples as themselves, a call as ("call", name, arguments)."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    begin = file.tell()
    for opcode, value, position in pickletools.genops(file):
        if opcode.name == "STOP":
            return stack[-1]
        _step(opcode.name, value, stack, memo, path, begin if position is None else position)
    raise BadFile(path, begin, "the description does not end")


def _step(name: str, value: Any, stack: list[Any], memo: dict[int, Any], path: Path, offset: int) -> None:
    if name in _CONSTANTS:
        stack.append(value)
    elif name in _LITERALS:
        stack.append(_LITERALS[name])
    elif name == "PROTO":
        return
    elif name == "MARK":
        stack.append(_Mark)
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[value] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[value])
    elif name == "TUPLE":
        stack.append(tuple(_above_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "BINPERSID":
        stack.append(("storage", stack.pop()))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append({} if (function, arguments) == ("collections OrderedDict", ()) else ("call", function, arguments))
    elif name == "SETITEM":
        item, key = stack.pop(), stack.pop()
        stack[-1][key] = item
    elif name == "SETITEMS":
        flat = _above_mark(stack)
        stack[-1].update(zip(flat[::2], flat[1::2], strict=True))
    elif name == "APPEND":
        item = stack.pop()
        stack[-1].append(item)
    elif name == "APPENDS":
        items = _above_mark(stack)
        stack[-1].extend(items)
    elif name == "BUILD":
        stack.pop()  # attributes of the dictionary (versions of modules), which no tensor needs
    else:
        raise BadFile(path, offset, f"opcode {name} has no place in a checkpoint")


def _above_mark(stack: list[Any]) -> list[Any]:
    """Take everything above the last mark, and the mark."""
    index = len(stack) - 1 - stack[::-1].index(_Mark)
    items = stack[index + 1 :]
    del stack[index:]
    return items
