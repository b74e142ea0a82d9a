"""A model small enough to save thousands of times, and the evidence beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file, save

from headway.core.evidence import Evidence
from headway.core.files import write_file
from headway.core.model import Model, Site, Task
from headway.core.weight import Weight

RECIPE = '[[system]]\nname = "int8"\n'


class SmallModel(Model):
    """One float32 vector, `size` long and filled with `value`."""

    def __init__(self, value: float, size: int = 64, task: Task = "language") -> None:
        self.values = np.full(size, value, dtype=np.float32)
        self.name = f"small-{value:g}"
        self.task = task

    def fingerprint(self) -> str:
        return hashlib.sha256(self.values.tobytes()).hexdigest()

    def sites(self) -> Sequence[Site]:
        return ()

    def weight(self, site: str) -> Weight:
        raise NotImplementedError

    def with_weights(self, weights: Mapping[str, Weight]) -> Self:
        raise NotImplementedError

    def module(self) -> Any:
        raise NotImplementedError

    def size_bytes(self) -> int:
        return self.values.nbytes

    def save(self, folder: Path) -> None:
        write_file(folder / "model.safetensors", save({"values": self.values}))
        (folder / "more").mkdir()
        write_file(folder / "more" / "config.json", b"{}")

    def extra(self) -> Mapping[str, Any]:
        return {"kv": {"pages": 16}}


def value_in(folder: Path) -> float:
    """The value of the model in an artifact's weights, which must be one value throughout."""
    values = np.unique(load_file(folder / "weights" / "model.safetensors")["values"])
    assert len(values) == 1
    return float(values[0])


def evidence(seed: int = 0) -> Evidence:
    return Evidence("optimize", "small", {"name": "here", "fingerprint": "f"}, seed, 2)
