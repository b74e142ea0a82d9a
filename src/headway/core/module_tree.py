"""Copies of a module tree that share its tensors, and the digest of its structure."""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.weight import Weight

_PLAIN = (bool, int, float, str, type(None))


def copy_tree(
    module: nn.Module,
    replace: Mapping[str, nn.Module] | None = None,
    *,
    parameter: Callable[[nn.Parameter], Any] | None = None,
    clone_buffers: bool = False,
) -> nn.Module:
    """A copy of `module` that shares parameters and packed weights; `replace` puts other modules at some paths.

    Shared submodules and tied parameters stay shared in the copy. `parameter` makes another object of each parameter
    (once). `clone_buffers` gives the copy buffers of its own. Raises `BadInput` when something in the module cannot
    be copied.
    """
    memo: dict[int, Any] = {}
    for child in module.modules():
        for held in vars(child).values():
            if isinstance(held, (Tensor, Weight)):
                memo[id(held)] = held
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.clone() if clone_buffers else buffer
    for weight in module.parameters():
        memo[id(weight)] = weight if parameter is None else parameter(weight)
    for name, stand_in in (replace or {}).items():
        memo[id(module.get_submodule(name))] = stand_in
    try:
        return copy.deepcopy(module, memo)
    except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise BadInput(
            f"{type(module).__name__} cannot be copied ({error})", "keep files, locks and threads out of the module"
        ) from error


def is_ours(kind: type) -> bool:
    """Whether a class belongs to torch or to this package, whose versions do not change what a network is."""
    return kind.__module__.split(".")[0] in ("torch", "headway")


_INTERNAL = {*vars(nn.Module()), "kernel_calls"}
"""Attributes that every module has, and what counts while one runs."""


def structure_digest(module: nn.Module, digest: Any) -> None:
    """Feed `digest` with the tree: paths, classes, what their attributes hold, the source of users' packages.

    Of an attribute of a kind that is not known here (a file, a thread), only the name counts.
    """
    seen: set[type] = set()
    for path, child in module.named_modules():
        kind = type(child)
        digest.update(f"\n{path}|{kind.__qualname__}".encode())
        for key, value in sorted(vars(child).items()):
            if key not in _INTERNAL:
                digest.update(f"|{key}={_held(value)}".encode())
        if kind in seen or is_ours(kind):
            continue
        seen.add(kind)
        digest.update(_sources(kind.__module__.partition(".")[0]))
        with suppress(OSError, TypeError):  # of a class from nowhere only the name is known
            digest.update(inspect.getsource(kind).encode())


def _held(value: Any) -> str:
    """What an attribute holds, as text that two equal values share."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (FunctionType, BuiltinFunctionType, partial, type)):
        return _code(value)
    if isinstance(value, Tensor):
        return tensor_digest(value).hex()
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, Mapping):
        return str(sorted((repr(key), _held(each)) for key, each in value.items()))
    if isinstance(value, (set, frozenset)):
        return str(sorted(_held(each) for each in value))
    if isinstance(value, (tuple, list)):
        return str([_held(each) for each in value])
    if is_dataclass(value):
        return f"{type(value).__qualname__}{[(item.name, _held(getattr(value, item.name))) for item in fields(value)]}"
    return "?"


@cache
def _sources(package: str) -> bytes:
    """Digest of the files of a package that are loaded: what a class does may stand in any of them."""
    digest = hashlib.sha256()
    for name, loaded in sorted(sys.modules.items()):
        path = getattr(loaded, "__file__", None)
        if name.partition(".")[0] == package and path and Path(path).suffix == ".py":
            with suppress(OSError):
                digest.update(Path(path).read_bytes())
    return digest.digest()


def _code(value: Any) -> str:
    """What a function or a class that a module holds does, as far as its name and its byte code tell."""
    if isinstance(value, partial):
        return f"{_code(value.func)}{_held(value.args)}{_held(value.keywords)}"
    code = getattr(value, "__code__", None)
    inside = "" if code is None else f"{code.co_code.hex()}{code.co_names}{code.co_varnames}{_constants(code)}"
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}{inside}"


def _constants(code: CodeType) -> str:
    return str([_constants(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts])


def tensor_digest(tensor: Tensor) -> bytes:
    """Digest of data type, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    if data.numel():
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def same_storage_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same elements of the same memory."""
    where = (tensor.data_ptr(), str(tensor.device)) if tensor.numel() else (id(tensor), "")
    return (*where, tuple(tensor.shape), tensor.stride(), tensor.dtype)
