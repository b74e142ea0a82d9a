"""What a language model thinks of a text: log-probabilities token by token, and two models side by side.

A text is cut into windows of N tokens from its start (the last may be shorter). Every window begins with the
model's own beginning-of-sequence token where it has one, and every token after the window's first is scored, so
that the same text, window and tokenizer always score the same tokens in the same order: results pair up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

CHUNK_FLOATS = 1 << 24
"""Logits held at once by each model: 64 MB."""


def windows(model: LanguageModel, text: str, window: int = 512) -> list[I64]:
    """The windows of `text`; raises `BadInput` for a window the model cannot hold and a text too short to score."""
    start = list(model.tokenizer.info.start)
    if not len(start) + 2 <= window <= model.architecture.context:
        raise BadInput(f"window={window}", f"it must be {len(start) + 2}..{model.architecture.context} tokens")
    tokens = model.encode(text, start=False)
    if len(start) + len(tokens) < 2:
        raise BadInput(f"the text has {len(tokens)} tokens, too few to score", "give a longer text")
    step = window - len(start)
    parts = [start + tokens[at : at + step] for at in range(0, len(tokens), step)]
    return [np.array(part, np.int64) for part in parts if len(part) >= 2]


def log_probabilities(model: LanguageModel, parts: Sequence[I64]) -> F64:
    """ln p of every scored token, in order, float64."""
    scores = [
        log_softmax_at(logits, part[at + 1 : at + 1 + len(logits)])
        for part in parts
        for at, logits in _predictions(model, part)
    ]
    return np.concatenate(scores)


def log_softmax_at(logits: F32, targets: I64) -> F64:
    """(n, vocab), (n,) -> ln softmax(logits)[i, targets[i]], summed in float64."""
    from headway.kernels.cpu import _cpu

    return cast(F64, _cpu.log_softmax_at(logits, targets))


def _predictions(model: LanguageModel, part: I64) -> Iterator[tuple[int, F32]]:
    """(position of its first row, logits) in chunks, for every token of the window but the last."""
    session = model.runtime.begin(len(part))
    step = max(1, CHUNK_FLOATS // model.architecture.vocab)
    for at in range(0, len(part) - 1, step):
        yield at, session.feed(part[at : min(at + step, len(part) - 1)], every=True)


@dataclass(frozen=True)
class Comparison:
    """Two models over the same tokens, one entry per scored token."""

    original: F64
    """ln p by the original model."""
    candidate: F64
    """ln p by the candidate."""
    kl: F64
    """KL(original || candidate) of the whole next-token distribution, nats."""
    agree: npt.NDArray[np.bool_]
    """Whether both hold the same token most likely."""

    @property
    def quality(self) -> float:
        """perplexity(original) / perplexity(candidate)."""
        return float(np.exp(self.candidate.mean() - self.original.mean()))

    @property
    def mean_kl(self) -> float:
        return float(self.kl.mean())

    @property
    def top1_agreement(self) -> float:
        return float(self.agree.mean())


def compare(original: LanguageModel, candidates: Sequence[LanguageModel], parts: Sequence[I64]) -> list[Comparison]:
    """Each candidate against the original. All are fed the same windows in lockstep, two chunks of logits in memory.

    Raises `BadInput` if their vocabularies differ.
    """
    from headway.kernels.cpu import _cpu

    for candidate in candidates:
        if original.architecture.vocab != candidate.architecture.vocab:
            raise BadInput(
                f"{candidate.name} has {candidate.architecture.vocab} tokens, {original.name} "
                f"{original.architecture.vocab}",
                "compare models of one vocabulary",
            )
    columns: list[list[Any]] = [[] for _ in candidates]
    for part in parts:
        predictions = [_predictions(candidate, part) for candidate in candidates]
        for at, ours in _predictions(original, part):
            targets = part[at + 1 : at + 1 + len(ours)]
            for found, theirs in zip(columns, predictions, strict=True):
                found.append(_cpu.compare_logits(ours, next(theirs)[1], targets))
    return [Comparison(*(np.concatenate(column) for column in zip(*found, strict=True))) for found in columns]
