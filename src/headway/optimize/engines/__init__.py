"""Engines that `bench` times beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from headway.core.errors import BadInput
from headway.llm.language_model import LanguageModel
from headway.optimize.engines.base import DECODED, Engine
from headway.optimize.engines.native import HeadwayEngine

PEERS = {"llama.cpp": "headway.optimize.engines.llama_cpp", "torch": "headway.optimize.engines.torch_eager"}
"""Name -> the module whose `make(model, variant, threads)` gives its engines, imported on demand."""

__all__ = ["DECODED", "PEERS", "Engine", "HeadwayEngine", "check", "peers"]


def check(names: Sequence[str]) -> None:
    """Raises `BadInput` for a peer that there is not, before anything is loaded."""
    for name in names:
        if name.partition(":")[0] not in PEERS:
            raise BadInput(f"no peer {name!r}", f"peers are: {', '.join(PEERS)}, and e.g. llama.cpp:Q4_0, torch:bf16")


def peers(names: Sequence[str], model: LanguageModel, threads: int) -> list[Engine]:
    """The engines that the names mean, of the unmodified model."""
    check(names)
    made: list[Engine] = []
    for name in names:
        peer, _, variant = name.partition(":")
        made += import_module(PEERS[peer]).make(model, variant, threads)
    repeated = sorted({engine.name for engine in made if [other.name for other in made].count(engine.name) > 1})
    if repeated:
        raise BadInput(f"{repeated[0]} is named twice", "name each peer once")
    return made
