"""What an object holds, as text that any two of equal content share, in every process.

An object is what its copy would be made of (`copyreg`, `__reduce_ex__`): that finds attributes, slots, items and the
parts of what is written in C. Of classes and functions the source of their package counts too. What cannot be taken
apart is told from everything else, in this process and in later ones, so that nothing kept for it is ever found again.
"""

from __future__ import annotations

import copyreg
import hashlib
import secrets
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

MOST = 100_000
"""Objects looked at below one; an object of more is not taken apart."""

_RUN = secrets.token_hex(16)
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
_VERSIONED = {"torch", "headway", "numpy", *sys.stdlib_module_names}
"""Packages whose source does not change what a network is while their versions stay."""
_TORCH_OPERATORS = {"aten", "prim", "prims", "quantized", "quantized_decomposed"}
"""Namespaces of `torch.ops` that torch fills; what stands in others is some library's."""
DERIVED = {"_flat_weight_refs", "_original_object_hash"}
"""Attributes that follow from others but differ in each copy or process: a recurrent layer's weak references, which may
outlive its weights; the salted hash of a transformers generation config."""


class Contents:
    """Tells what objects hold. Of those in `named` (by `id`), which are told elsewhere, only the name counts."""

    def __init__(self, named: Mapping[int, str]) -> None:
        self._named = named
        self._known: dict[int, tuple[Any, str]] = {}

    def of(self, value: Any) -> str:
        """The content of one object."""
        if isinstance(value, PLAIN):
            return repr(value)
        if id(value) not in self._known:
            try:
                told = _Walk(self._named).of(value)
            except Exception:  # whatever its own code raises, an object that is too large or too deep
                told = f"{_RUN}.{id(value)}"
            self._known[id(value)] = value, told
        return self._known[id(value)][1]


class _Walk:
    """One object and all below it; what stands above an object that it holds again is told by how far above."""

    def __init__(self, named: Mapping[int, str]) -> None:
        self._named = named
        self._above: dict[int, int] = {}
        self._left = MOST

    def of(self, value: Any) -> str:
        if isinstance(value, PLAIN):
            return repr(value)
        if id(value) in self._named:
            return f"<{self._named[id(value)]}>"
        if id(value) in self._above:
            return f"^{len(self._above) - self._above[id(value)]}"
        self._left -= 1
        if self._left < 0:
            raise OverflowError(f"more than {MOST} objects")
        self._above[id(value)] = len(self._above)
        told = f"{type(value).__qualname__}({self._inside(value)})"
        del self._above[id(value)]
        return told

    def _inside(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return tensor_digest(value).hex()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        if type(value) is dict:
            return self._pairs(value.items())
        if isinstance(value, (set, frozenset)):
            return str(sorted(map(self.of, value)))
        if type(value) in (tuple, list):
            return str([self.of(each) for each in value])
        if isinstance(value, ModuleType):
            return _origin(value.__name__, "")
        if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
            return self._function(value)
        if isinstance(value, CodeType):
            return self.of((value.co_code, value.co_names, value.co_varnames, value.co_consts))
        if isinstance(value, weakref.ref):
            return self.of(value())
        if isinstance(value, (OpOverload, OpOverloadPacket)) and str(value).partition(".")[0] in _TORCH_OPERATORS:
            return str(value)  # namespace.operator.overload
        if isinstance(value, partial):
            return self.of((value.func, value.args, value.keywords))
        return self._parts(value)

    def _pairs(self, items: Any) -> str:
        return str(sorted((self.of(key), self.of(each)) for key, each in items))

    def _function(self, value: Any) -> str:
        """Of a class the name, of a function also its code and what it was made with."""
        named = _origin(getattr(value, "__module__", None) or "", value.__qualname__)
        if isinstance(value, FunctionType):
            held = tuple(cell.cell_contents for cell in value.__closure__ or ())
            return named + self.of((value.__code__, value.__defaults__, value.__kwdefaults__, held))
        owner = getattr(value, "__self__", None)  # of a bound method written in C
        return named if owner is None or isinstance(value, type) else named + self.of(owner)

    def _parts(self, value: Any) -> str:
        """What `copy.deepcopy` would make another one of."""
        kind = type(value)
        reduce = copyreg.dispatch_table.get(kind)
        made = value.__reduce_ex__(4) if reduce is None else reduce(value)
        if isinstance(made, str):
            return _origin(kind.__module__, made)
        maker, arguments, state, items, pairs = (*made, None, None, None)[:5]
        if type(state) is dict:
            state = {key: each for key, each in state.items() if key not in DERIVED}
        parts = self.of((kind, maker, arguments, state, list(items or ())))
        return parts + self._pairs(pairs or ())


def _origin(module: str, name: str) -> str:
    package = module.partition(".")[0]
    return f"{module}.{name}" + ("" if package in _VERSIONED else sources(package).hex())


@cache
def sources(package: str) -> bytes:
    """Digest of the files of a package that are loaded: what a class does may stand in any of them."""
    digest = hashlib.sha256()
    for name, loaded in sorted(sys.modules.items()):
        path = getattr(loaded, "__file__", None)
        if name.partition(".")[0] == package and path and Path(path).suffix == ".py":
            with suppress(OSError):
                digest.update(Path(path).read_bytes())
    return digest.digest()


def tensor_digest(tensor: Tensor) -> bytes:
    """Digest of data type, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    if data.numel():
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
