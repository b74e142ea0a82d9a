"""`TokenTrainer`: adapters trained token by token; a job may rest after any window of any layer.

Gradients equal those of whole sequences, up to the order of sums, for every way of cutting them into windows
(FlexLLM, arXiv 2402.18789). Memory of a sequence in work is `Layer`'s kept rows, the gradient of one layer boundary
(T, d), dK and dV of one layer, and a window's scratch; logits exist for `HEAD_ROWS` tokens at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from headway.core.errors import BadInput
from headway.training.adamw import AdamW, AdamWSettings
from headway.training.examples import Example
from headway.training.layer import Kept, Layer, Remat, norm, norm_backward
from headway.training.lora import Adapters, Pair, Site
from headway.training.position import Course, Forward, Piece, Position
from headway.training.stack import Stack

HEAD_ROWS = 32
"""Tokens whose logits are held at once."""


class Diverged(BadInput):
    """The loss is no number any more: the job has stopped; adapters are those of the last step."""


@dataclass
class _Work:
    """Of the sequence in work."""

    layers: list[Kept | None]
    """A layer's rows go when its backward is done."""
    boundary: Tensor
    """(T, d_model): the gradient that enters the layer in work."""
    gradients: dict[Site, Pair]
    """Apart from those of finished sequences, so that a sequence can be dropped and begun again."""
    dk: Tensor
    dv: Tensor
    loss: float = 0.0

    @property
    def nbytes(self) -> int:
        rows = sum(kept.nbytes for kept in self.layers if kept is not None)
        return rows + self.boundary.nbytes + self.dk.nbytes + self.dv.nbytes


@dataclass
class TokenTrainer:
    """`run` pieces of `position` in their order; `version` counts optimiser steps. Not safe for two threads."""

    stack: Stack
    adapters: Adapters
    examples: Sequence[Example]
    accum: int = 8
    steps: int = 1
    optimiser: AdamWSettings = field(default_factory=AdamWSettings)
    remat: Remat = "light"

    def __post_init__(self) -> None:
        if self.remat not in ("light", "mlp", "none"):
            raise BadInput(f"no rematerialisation {self.remat!r}", "levels are: light, mlp, none")
        if not all(len(example) > 1 and example.labels for example in self.examples):
            raise BadInput("an example has nothing to learn", "pass them through `prepare`")
        lengths = [len(example) for example in self.examples]
        course = Course.of(lengths, len(self.stack.blocks), self.adapters.lowest, self.accum, self.steps)
        self.position = Position(course)
        self.losses: list[float] = []
        """Mean loss of each finished sequence."""
        self.peak_bytes = 0
        """The most that the sequence in work has held."""
        self._layers = [Layer(self.stack, index, self.adapters, self.remat) for index in range(len(self.stack.blocks))]
        self._adamw = AdamW(self.adapters, self.optimiser)
        self._gradients = self._zeros()
        self._work: _Work | None = None

    def _zeros(self) -> dict[Site, Pair]:
        return {site: pair.like() for site, pair in self.adapters.pairs.items()}

    @property
    def version(self) -> int:
        """Optimiser steps that the adapters have seen: what a published copy is called."""
        return self._adamw.steps

    @property
    def gradients(self) -> dict[Site, Pair]:
        """Summed over the finished sequences since the last step, each divided by `accum`."""
        return self._gradients

    @property
    def held_bytes(self) -> int:
        """Of the sequence in work."""
        return 0 if self._work is None else self._work.nbytes

    def run(self, piece: Piece) -> None:
        """Do the next piece. Raises `ValueError` for another one, `Diverged` when the loss is no number."""
        after = self.position.after(piece)
        with torch.inference_mode():
            work = self._work or self._begin()
            if isinstance(piece, Forward):
                self._forward(work, piece.low, piece.high)
            else:
                self._backward(work, piece.layer, piece.low, piece.high)
            if after.sequences > self.position.sequences:
                self._finish(work)
                if after.step > self.position.step:
                    self._adamw.step(self._gradients)
                    self._gradients = self._zeros()
        self.position = after

    def drop(self) -> None:
        """Give the sequence in work up: its memory goes now, and it is begun again. Adapters stay as they are."""
        self._work = None
        self.position = self.position.dropped()

    @property
    def _example(self) -> Example:
        return self.examples[self.position.sequences % len(self.examples)]

    def _begin(self) -> _Work:
        length, s, dtype = self.position.length, self.stack.sizes, self.stack.dtype
        kv = (s.kv_heads, length, s.head_dim)
        self._work = _Work(
            [layer.begin(length) for layer in self._layers],
            torch.empty((length, s.d_model), dtype=dtype),
            self._zeros(),
            torch.zeros(kv, dtype=dtype),
            torch.zeros(kv, dtype=dtype),
        )
        self.peak_bytes = max(self.peak_bytes, self._work.nbytes)
        return self._work

    def _forward(self, work: _Work, low: int, high: int) -> None:
        x = F.embedding(torch.from_numpy(self._example.tokens[low:high]), self.stack.embedding)
        x = x * self.stack.embedding_scale
        for layer, kept in zip(self._layers, work.layers, strict=True):
            assert kept is not None
            x = layer.forward(x, low, kept)
        for at in range(0, high - low, HEAD_ROWS):
            part = slice(low + at, min(low + at + HEAD_ROWS, high))
            work.boundary[part], loss = self._loss(x[at : at + HEAD_ROWS], part.start)
            work.loss += loss
        if not math.isfinite(work.loss):
            self.drop()
            raise Diverged("the training loss is no number", "train with a lower learning rate")

    def _loss(self, x: Tensor, low: int) -> tuple[Tensor, float]:
        """x: the last layer's output for tokens from `low` on -> its gradient, and their share of the mean loss."""
        example, stack = self._example, self.stack
        count = min(x.shape[0], len(example) - 1 - low)  # the last token predicts nothing
        next_ones = slice(low + 1, low + 1 + count)
        labels = torch.from_numpy(example.tokens[next_ones])
        weights = torch.from_numpy(example.learn[next_ones]).to(x.dtype) / example.labels
        gradient = torch.zeros_like(x)
        if not count:
            return gradient, 0.0
        h = norm(x[:count], stack.final_norm, stack.sizes.norm_eps)
        logits = h @ stack.head.T
        lse = logits.logsumexp(-1, keepdim=True)
        picked = logits.gather(1, labels[:, None])
        loss = float(((lse - picked)[:, 0] * weights).sum())
        probabilities = logits.sub_(lse).exp_()
        probabilities.scatter_add_(1, labels[:, None], torch.full_like(picked, -1.0))
        d_h = (probabilities @ stack.head).mul_(weights[:, None])
        gradient[:count] = norm_backward(x[:count], stack.final_norm, stack.sizes.norm_eps, d_h)
        return gradient, loss

    def _backward(self, work: _Work, index: int, low: int, high: int) -> None:
        layer, kept = self._layers[index], work.layers[index]
        assert kept is not None
        gradient = layer.backward(work.boundary[low:high], low, kept, work.dk, work.dv, work.gradients)
        if gradient is not None:
            work.boundary[low:high] = gradient
        if low == 0:
            work.layers[index] = None
            work.dk.zero_()
            work.dv.zero_()

    def _finish(self, work: _Work) -> None:
        for site, pair in work.gradients.items():
            into = self._gradients[site]
            into.a.add_(pair.a, alpha=1.0 / self.accum)
            into.b.add_(pair.b, alpha=1.0 / self.accum)
        self.losses.append(work.loss)
        self._work = None
