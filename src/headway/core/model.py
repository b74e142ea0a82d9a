"""The `Model` protocol: what every runtime gives the main path, whatever the network is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from headway.core.patterns import matches
from headway.core.weight import Weight

if TYPE_CHECKING:
    import torch

Task = Literal["language", "embedding", "classification", "image", "module"]


@dataclass(frozen=True)
class Site:
    """A place in a model that holds a linear weight: the unit that `only=` and `skip=` patterns select.

    `name` is the module path in the readable torch model (`layers.0.attention.q`). `kind` is `linear`, `conv1x1`,
    `embedding` or `head`; a tied embedding and head are one site of kind `head`.
    """

    name: str
    out_features: int
    in_features: int
    kind: Literal["linear", "conv1x1", "embedding", "head"] = "linear"

    @property
    def parameters(self) -> int:
        return self.out_features * self.in_features

    def matches(self, patterns: Sequence[str]) -> bool:
        return matches(self.name, patterns)


class Model(ABC):
    """A model in some runtime. Immutable: changing weights gives a new model that shares everything unchanged."""

    name: str
    task: Task
    given: str = ""
    """What `headway.load` was given, where that is text: another name for the model on a command line."""
    notes: Sequence[str] = ()
    """Sentences about it for its evidence: what is left alone, and why."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the content (configuration and weights), stable across runs and machines."""

    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """The linear weights, in execution order."""

    @abstractmethod
    def weight(self, site: str) -> Weight:
        """The weight now in that site."""

    @abstractmethod
    def with_weights(self, weights: Mapping[str, Weight]) -> Self:
        """The same model with some sites holding other weights."""

    @abstractmethod
    def module(self) -> torch.nn.Module:
        """Readable float32 torch module with the exact dequantised weights; site names are its module paths."""

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of all weights as an artifact stores them."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors) and whatever `load` needs into a folder, made if absent."""

    def extra(self) -> Mapping[str, Any]:
        """Runtime settings that policies plugged in (KV store, decoder ...)."""
        return {}
