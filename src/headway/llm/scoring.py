"""What a language model thinks of a text: log-probabilities token by token, and two models side by side.

A text is cut into windows of N tokens from its start (the last may be shorter). Every window begins with the
model's own beginning-of-sequence token where it has one, and every token after the window's first is scored, so
that the same text, window and tokenizer always score the same tokens in the same order: results pair up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

WINDOW = 512


def windows(model: LanguageModel, text: str, window: int | None = None) -> list[I64]:
    """The windows of `text`: of 512 tokens, or of the context where that is less, if no window is asked for.

    Raises `BadInput` for a window the model cannot hold and a text too short to score.
    """
    start = list(model.tokenizer.info.start)
    if window is None:
        window = min(WINDOW, model.architecture.context)
    if not len(start) + 2 <= window <= model.architecture.context:
        raise BadInput(f"window={window}", f"it must be {len(start) + 2}..{model.architecture.context} tokens")
    tokens = model.encode(text, start=False)
    if len(start) + len(tokens) < 2:
        raise BadInput(f"the text has {len(tokens)} tokens, too few to score", "give a longer text")
    step = window - len(start)
    parts = [start + tokens[at : at + step] for at in range(0, len(tokens), step)]
    return [np.array(part, np.int64) for part in parts if len(part) >= 2]


Predictor = Callable[[I64], Iterator[tuple[int, F32]]]
"""A window -> (position of its first row, logits) in chunks, for every token but the last: see `predictor`."""


def predictor(model: LanguageModel) -> Predictor:
    """What a model predicts after each token of a window."""

    def predictions(part: I64) -> Iterator[tuple[int, F32]]:
        session = model.runtime.begin(len(part))
        for at, end in chunks(len(part) - 1, model.architecture.vocab):
            yield at, session.feed(part[at:end], every=True)

    return predictions


def chunks(tokens: int, vocab: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the pieces that a window is fed in, so that `CHUNK_FLOATS` logits are held at once."""
    step = max(1, CHUNK_FLOATS // vocab)
    return ((at, min(at + step, tokens)) for at in range(0, tokens, step))


def log_probabilities(model: LanguageModel, parts: Sequence[I64]) -> F64:
    """ln p of every scored token, in order, float64."""
    from headway.kernels.cpu import _cpu

    predictions = predictor(model)
    scores = [
        _cpu.log_softmax_at(logits, part[at + 1 : at + 1 + len(logits)])
        for part in parts
        for at, logits in predictions(part)
    ]
    return np.concatenate(scores)


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
    """Each candidate against the original, in lockstep. Raises `BadInput` if their vocabularies differ."""
    for candidate in candidates:
        if original.architecture.vocab != candidate.architecture.vocab:
            raise BadInput(
                f"{candidate.name} has {candidate.architecture.vocab} tokens, {original.name} "
                f"{original.architecture.vocab}",
                "compare models of one vocabulary",
            )
    return compare_predictions(predictor(original), [predictor(candidate) for candidate in candidates], parts)


def compare_predictions(
    original: Predictor, candidates: Sequence[Predictor], parts: Sequence[I64], progress: Callable[[], object] = bool
) -> list[Comparison]:
    """Each candidate against the original, which runs once for all. All cut a window alike; one chunk of each is held.

    progress: called after each window.
    """
    from headway.kernels.cpu import _cpu

    columns: list[list[Any]] = [[] for _ in candidates]
    for part in parts:
        predictions = [candidate(part) for candidate in candidates]
        for at, ours in original(part):
            targets = part[at + 1 : at + 1 + len(ours)]
            for found, theirs in zip(columns, predictions, strict=True):
                found.append(_cpu.compare_logits(ours, next(theirs)[1], targets))
        progress()
    return [Comparison(*(np.concatenate(column) for column in zip(*found, strict=True))) for found in columns]
