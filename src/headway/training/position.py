"""`Position`: where a token-level training job stands, and the pieces of work it is cut into. No torch here.

    sequence 0: forward [0, T) in windows | backward, layer L-1 ... lowest, each in windows from the end to the start
    sequence 1: the same                  | after every `accum` sequences an optimiser step

FlexLLM (arXiv 2402.18789, section 6): any window size, chosen anew for each piece; a job may rest between any two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headway.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class Forward:
    """The tokens [low, high) of the sequence, through all layers and the loss."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Backward:
    """The tokens [low, high) of one layer; everything behind `high` is done there."""

    layer: int
    low: int
    high: int


Piece = Forward | Backward


@dataclass(frozen=True)
class Course:
    """What there is to do: sequences in turn, `steps` optimiser steps of `accum` sequences each.

    lengths: tokens of each sequence. lowest: the lowest layer with an adapter; nothing below it needs a gradient.
    """

    lengths: tuple[int, ...]
    layers: int
    lowest: int
    accum: int
    steps: int

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 2:
            raise BadInput("training needs sequences of at least 2 tokens", "give texts that are longer")
        if not 0 <= self.lowest < self.layers:
            raise BadInput(f"layer {self.lowest} of {self.layers}", "adapt a layer that is there")
        if self.accum < 1 or self.steps < 1:
            raise BadInput(f"{self.steps} steps of {self.accum} sequences", "give at least one of each")

    @classmethod
    def of(cls, lengths: Sequence[int], layers: int, lowest: int = 0, accum: int = 8, steps: int = 1) -> Course:
        return cls(tuple(lengths), layers, lowest, accum, steps)


@dataclass(frozen=True)
class Position:
    """`sequences` are done; `at`: tokens of the next that went forward, or that a layer's backward has still to do."""

    course: Course
    sequences: int = 0
    layer: int | None = None
    """Where its backward is; None: forward."""
    at: int = 0

    @property
    def length(self) -> int:
        """Tokens of the sequence in work."""
        return self.course.lengths[self.sequences % len(self.course.lengths)]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.sequences // self.course.accum

    @property
    def finished(self) -> bool:
        return self.step >= self.course.steps

    @property
    def begun(self) -> bool:
        """Whether a sequence is in work, and holds memory."""
        return self.layer is not None or self.at > 0

    @property
    def left(self) -> int:
        """Tokens that the next piece may have at most."""
        return self.at if self.layer is not None else self.length - self.at

    @property
    def tokens(self) -> float:
        """Tokens trained: one counts half when it went forward and half over its way back."""
        course = self.course
        whole, rest = divmod(self.sequences, len(course.lengths))
        done = float(whole * sum(course.lengths) + sum(course.lengths[:rest]))
        if self.layer is None:
            return done + 0.5 * self.at
        layers = course.layers - course.lowest
        share = (course.layers - 1 - self.layer + (self.length - self.at) / self.length) / layers
        return done + 0.5 * self.length * (1.0 + share)

    def piece(self, tokens: int) -> Piece:
        """The next piece, of so many tokens. Raises `ValueError` when there are fewer, or none."""
        if self.finished or not 1 <= tokens <= self.left:
            raise ValueError(f"{tokens} tokens of {0 if self.finished else self.left}")
        if self.layer is None:
            return Forward(self.at, self.at + tokens)
        return Backward(self.layer, self.at - tokens, self.at)

    def after(self, piece: Piece) -> Position:
        """Once that is done. Raises `ValueError` for one that is not the next."""
        if piece != self.piece(piece.high - piece.low):
            raise ValueError(f"{piece} is not next at {self.layer=} {self.at=}")
        if isinstance(piece, Forward):
            if piece.high < self.length:
                return replace(self, at=piece.high)
            return replace(self, layer=self.course.layers - 1, at=self.length)
        if piece.low:
            return replace(self, at=piece.low)
        if piece.layer > self.course.lowest:
            return replace(self, layer=piece.layer - 1, at=self.length)
        return Position(self.course, self.sequences + 1)

    def dropped(self) -> Position:
        """With the sequence in work to be begun again."""
        return Position(self.course, self.sequences)
