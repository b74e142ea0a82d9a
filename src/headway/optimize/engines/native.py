"""The native runtime as an engine; a batch is one ragged step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from headway.core.version import __version__
from headway.llm import scoring
from headway.llm.language_model import LanguageModel
from headway.llm.scoring import F32, I64
from headway.optimize.engines.base import DECODED, Repeat


class HeadwayEngine:
    """The model as it is, or with a recipe applied."""

    version = __version__

    def __init__(self, model: LanguageModel, name: str = "headway") -> None:
        self.name, self.model = name, model
        self.size_bytes = model.size_bytes()
        self.bits = average_bits(model)
        self.runtime: Any = model.runtime

    def prefill(self, tokens: I64) -> Repeat:
        return lambda: self.runtime.begin(len(tokens)).feed(tokens)

    def decode(self, tokens: I64, batch: int, depth: int) -> Repeat:
        sessions = [self.runtime.begin(depth + DECODED) for _ in range(batch)]
        for session in sessions:
            session.feed(tokens[:depth])
        steps = [[np.array([token])] * batch for token in tokens[:DECODED]]

        def repeat() -> None:
            for step in steps:
                self.runtime.step(sessions, step)
            for session in sessions:
                session.rewind(depth)

        return repeat

    def read(self) -> Repeat:
        """Every weight read plainly as often as `decode` reads it: no kernel is faster."""

        def repeat() -> None:
            for _ in range(DECODED):
                self.runtime.model.read(self.model.threads)

        return repeat

    def predictions(self, part: I64) -> Iterator[tuple[int, F32]]:
        return scoring.predictor(self.model)(part)

    def close(self) -> None:
        """Sequences are freed with the repetitions that hold them."""


def average_bits(model: LanguageModel) -> float:
    """Stored bits of one weight, over all sites."""
    weights = [model.weight(site.name) for site in model.sites()]
    return 8.0 * sum(w.nbytes for w in weights) / sum(w.shape[0] * w.shape[1] for w in weights)
