"""Copies of a module tree that share its tensors, and the digest of its structure."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from headway.core.contents import DERIVED, PLAIN, Contents, sources
from headway.core.errors import BadInput
from headway.core.weight import Weight

_PLAIN = (*PLAIN, dict, list, tuple, set)
"""What is no weight: asking a protocol takes long."""


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
            if not isinstance(held, _PLAIN) and isinstance(held, (Tensor, Weight)):
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


_INTERNAL = {*vars(nn.Module()), *DERIVED, "kernel_calls"}
"""Attributes that every module has, what follows from others, and what counts while one runs."""
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def structure_digest(module: nn.Module, digest: Any) -> None:
    """Feed `digest` with the tree: paths, classes, what their attributes hold, hooks, the source of users' packages.

    An attribute that cannot be taken apart makes the digest another one in every process, see `contents`.
    """
    tree = dict(module.named_modules())
    named = {id(child): path for path, child in tree.items()}
    named |= {id(tensor): path for path, tensor in (*module.named_parameters(), *module.named_buffers())}
    contents = Contents(named)
    seen: set[type] = set()
    for path, child in tree.items():
        kind: Any = type(child)
        digest.update(f"\n{path}|{kind.__qualname__}".encode())
        for key, value in sorted(vars(child).items()):
            if key not in _INTERNAL:
                weight = not isinstance(value, PLAIN) and isinstance(value, Weight)  # its values are told elsewhere
                digest.update(f"|{key}={'weight' if weight else contents.of(value)}".encode())
        for key in _HOOKS:
            for hook in vars(child)[key].values():
                digest.update(f"|{key}={contents.of(hook)}".encode())
        if kind in seen or is_ours(kind):
            continue
        seen.add(kind)
        digest.update(sources(kind.__module__.partition(".")[0]))
        digest.update(_source(kind))


@lru_cache(4096)
def _source(kind: type) -> bytes:
    """Of a class itself, which need not stand in a file; nothing of one from nowhere."""
    with suppress(OSError, TypeError):
        return inspect.getsource(kind).encode()
    return b""


def same_storage_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same elements of the same memory."""
    where = (tensor.data_ptr(), str(tensor.device)) if tensor.numel() else (id(tensor), "")
    return (*where, tuple(tensor.shape), tensor.stride(), tensor.dtype)
