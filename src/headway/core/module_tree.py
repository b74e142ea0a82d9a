"""Copies of a module tree that share its tensors, and the digest of its structure."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

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


def structure_digest(module: nn.Module, digest: Any) -> None:
    """Feed `digest` with the tree: paths, classes, plain attributes and functions, the source of users' classes."""
    sources: set[type] = set()
    for path, child in module.named_modules():
        kind = type(child)
        digest.update(f"\n{path}|{kind.__qualname__}".encode())
        for key, value in sorted(vars(child).items()):
            if key.startswith("_") or key in ("training", "kernel_calls"):
                continue
            if _is_plain(value):
                digest.update(f"|{key}={value!r}".encode())
            elif isinstance(value, (FunctionType, BuiltinFunctionType, partial, type)):
                digest.update(f"|{key}={_code(value)}".encode())
        if kind not in sources and not is_ours(kind):
            sources.add(kind)
            try:
                digest.update(inspect.getsource(kind).encode())
            except (OSError, TypeError):
                digest.update(b"|no source")


def _code(value: Any) -> str:
    """What a function or a class that a module holds does, as far as its name and its byte code tell."""
    if isinstance(value, partial):
        return f"{_code(value.func)}{value.args!r}{sorted(value.keywords.items())!r}"
    code = getattr(value, "__code__", None)
    inside = "" if code is None else f"{code.co_code.hex()}{code.co_names}{code.co_varnames}{_constants(code)}"
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}{inside}"


def _constants(code: CodeType) -> list[str]:
    return [_constants(part).__repr__() if isinstance(part, CodeType) else repr(part) for part in code.co_consts]


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, _PLAIN)


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
