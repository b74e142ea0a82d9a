"""What a language model thinks of a text: log-probabilities token by token, and two models side by side.

A text is cut into windows of N tokens from its start (the last may be shorter). Every window begins with the
model's own beginning-of-sequence token where it has one, and every token after the window's first is scored, so
that the same text, window and tokenizer always score the same tokens in the same order: results pair up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """(n, vocab), (n,) -> ln softmax(logits)[i, targets[i]], sums in float64."""
    rows = np.arange(len(targets))
    return logits[rows, targets].astype(np.float64) - log_sum_exp(logits)


def log_sum_exp(logits: F32) -> F64:
    """(n, vocab) -> (n,)."""
    top = logits.max(axis=1, keepdims=True)
    norm: F64 = np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64)) + top[:, 0]
    return norm


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


def compare(original: LanguageModel, candidate: LanguageModel, parts: Sequence[I64]) -> Comparison:
    """Feed both models the same windows in lockstep, two chunks of logits in memory.

    Raises `BadInput` if their vocabularies differ.
    """
    if original.architecture.vocab != candidate.architecture.vocab:
        raise BadInput(
            f"{candidate.name} has {candidate.architecture.vocab} tokens, {original.name} "
            f"{original.architecture.vocab}",
            "compare models of one vocabulary",
        )
    columns: list[tuple[F64, F64, F64, npt.NDArray[np.bool_]]] = []
    for part in parts:
        pairs = zip(_predictions(original, part), _predictions(candidate, part), strict=True)
        for (at, ours), (_, theirs) in pairs:
            columns.append(_compared(ours, theirs, part[at + 1 : at + 1 + len(ours)]))
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    return Comparison(joined[0], joined[1], joined[2], joined[3])


def _compared(ours: F32, theirs: F32, targets: I64) -> tuple[F64, F64, F64, npt.NDArray[np.bool_]]:
    rows = np.arange(len(targets))
    ours_norm, theirs_norm = log_sum_exp(ours), log_sum_exp(theirs)
    p = np.exp(ours - ours_norm[:, None].astype(np.float32))
    gap = np.einsum("ij,ij->i", p, ours - theirs, dtype=np.float64)
    mass = p.sum(axis=1, dtype=np.float64)
    kl = np.maximum(gap - mass * (ours_norm - theirs_norm), 0.0)
    return (
        ours[rows, targets] - ours_norm,
        theirs[rows, targets] - theirs_norm,
        kl,
        ours.argmax(axis=1) == theirs.argmax(axis=1),
    )
