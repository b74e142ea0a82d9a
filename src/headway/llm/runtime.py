"""`Runtime`: what executes a language model: the readable torch reference, or the native whole-model step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from headway.core.weight import Weight
from headway.llm.families.base import Architecture

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
KVType = Literal["f16", "f32", "int8", "int4", "k8v4"]
"""How the native runtime keeps keys and values."""

KV_TYPES: tuple[KVType, ...] = get_args(KVType)


class Session(Protocol):
    """One sequence and its keys and values. Not safe for two threads at once."""

    @property
    def length(self) -> int:
        """Tokens fed so far."""
        ...

    def feed(self, tokens: I64, every: bool = False) -> F32:
        """Append tokens (n >= 1; ids already checked against the vocabulary; room for them already checked).

        Returns logits, float32: of the last token, shape (vocab,), or of every token, shape (n, vocab).
        """
        ...

    def rewind(self, length: int) -> None:
        """Forget every token after the first `length`."""
        ...


class Runtime(Protocol):
    """Built as `SomeRuntime(architecture, weights, vectors)`: weights by site, float32 vectors by name.

    `Architecture.sites` and `Architecture.vectors` give the names and shapes, all present and checked.
    """

    def __init__(
        self, architecture: Architecture, weights: Mapping[str, Weight], vectors: Mapping[str, F32]
    ) -> None: ...

    def begin(self, capacity: int) -> Session:
        """A new sequence with room for `capacity` tokens (at most the context)."""
        ...
