"""What an engine must do to be timed by `bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from headway.llm.scoring import F32, I64

DECODED = 8
"""Tokens decoded by one repetition."""

Repeat = Callable[[], object]


class Engine(Protocol):
    """An engine that runs a language model. `prefill` and `decode` give one repetition to time."""

    name: str
    version: str
    size_bytes: int
    bits: float
    """Stored bits of one weight, over all matrices."""

    def prefill(self, tokens: I64) -> Repeat:
        """Reads one prompt from nothing and gives the last token's logits."""

    def decode(self, tokens: I64, batch: int, depth: int) -> Repeat:
        """`batch` sequences after `depth` tokens each: `DECODED` steps of one token each, and back to `depth`."""

    def predictions(self, part: I64) -> Iterator[tuple[int, F32]]:
        """What it predicts after each token of a window: a `headway.llm.scoring.Predictor`."""

    def close(self) -> None:
        """Frees what `prefill` and `decode` hold."""


class ModuleEngine(Protocol):
    """An engine that runs a module that does not decode."""

    name: str
    version: str
    size_bytes: int
    bits: float
    """Stored bits of one weight, over all linear sites."""

    def repeat(self, inputs: tuple[Any, ...]) -> Repeat:
        """One forward to time."""

    def run(self, inputs: tuple[Any, ...]) -> Any:
        """What the module returns."""
