"""Engines that `bench` times beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from headway.core.errors import BadInput
from headway.core.model import Model
from headway.optimize.engines.base import DECODED, Engine
from headway.optimize.engines.native import HeadwayEngine

PEERS = {
    "llama.cpp": "headway.optimize.engines.llama_cpp",
    "torch": "headway.optimize.engines.torch_eager",
    "transformers": "headway.optimize.engines.transformers_eager",
}
"""Of language models: name -> the module, imported on demand, whose `make(model, variant, threads)` gives engines."""

MODULE_PEERS = {
    "torch": "headway.optimize.engines.torch_module",
    "onnxruntime": "headway.optimize.engines.onnxruntime",
}
"""The same of other modules."""

__all__ = ["DECODED", "MODULE_PEERS", "PEERS", "Engine", "HeadwayEngine", "check", "peers"]


def check(names: Sequence[str], task: str | None = None) -> None:
    """Raises `BadInput` for a peer that there is not for models of the task (None: for none), before all loading."""
    known = {**PEERS, **MODULE_PEERS} if task is None else PEERS if task == "language" else MODULE_PEERS
    for name in names:
        if name.partition(":")[0] not in known:
            variants = "" if task not in (None, "language") else ", and e.g. llama.cpp:Q4_0, torch:bf16"
            raise BadInput(f"no peer {name!r}", f"peers are: {', '.join(known)}{variants}")


def peers(names: Sequence[str], model: Model, threads: int) -> list[Any]:
    """The engines that the names mean, of the unmodified model: `Engine`s, or `ModuleEngine`s for a module."""
    check(names, model.task)
    known = PEERS if model.task == "language" else MODULE_PEERS
    made: list[Any] = []
    for name in names:
        peer, _, variant = name.partition(":")
        made += import_module(known[peer]).make(model, variant, threads)
    repeated = sorted({engine.name for engine in made if [other.name for other in made].count(engine.name) > 1})
    if repeated:
        raise BadInput(f"{repeated[0]} is named twice", "name each peer once")
    return made
