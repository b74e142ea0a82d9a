"""Training beside inference: what a scheduler sees of a job, what its pieces cost, and who runs them.

The engine runs a `FineTune`, whose gradients are real; the simulator a `Tuning`, which only counts. Both are at a
`Position`, and advance by the pieces that a scheduler put into `Batch.extra`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load
from headway.training.position import Backward, Forward, Piece, Position

if TYPE_CHECKING:
    from headway.training.lora import Adapters
    from headway.training.token_trainer import TokenTrainer


@dataclass(frozen=True)
class PieceTime:
    """Seconds of a window of n tokens from token `low` on: fixed + token * n + pair * n (low + n / 2)."""

    fixed: float
    token: float
    pair: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.fixed, self.token, self.pair)
        if not np.isfinite(numbers).all() or min(numbers) < 0 or not sum(numbers) > 0:
            raise BadInput(f"a piece's time of {numbers}", "fit it from measured pieces")

    def __call__(self, low: int, high: int) -> float:
        tokens = high - low
        return self.fixed + tokens * (self.token + self.pair * (low + tokens / 2.0))

    @classmethod
    def fit(cls, pieces: Sequence[tuple[int, int]], seconds: Sequence[float]) -> PieceTime:
        """Non-negative least squares of relative errors over measured (low, high)."""
        from scipy.optimize import nnls

        wanted = np.asarray(seconds, float)
        rows = np.array([(1.0, high - low, (high - low) * (low + high) / 2.0) for low, high in pieces])
        found, _ = nnls(rows / wanted[:, None], np.ones(len(wanted)))
        return cls(*(float(value) for value in found))

    def scaled(self, factor: float) -> PieceTime:
        return PieceTime(self.fixed * factor, self.token * factor, self.pair * factor)


@dataclass(frozen=True)
class TuningTime:
    """Seconds that pieces add to a batch.

    joined: forward tokens are rows of the batch itself, whose weights are then read once for both. Otherwise they cost
    `forward` of their own. `step`: of the optimiser.
    """

    forward: PieceTime
    backward: PieceTime
    """Of one layer."""
    step: float = 0.0
    joined: bool = False

    def seconds(self, inference: IterationTime, load: Load, position: Position, pieces: Iterable[Piece]) -> float:
        """Of the whole iteration: a batch of that load, and these pieces beginning at that position."""
        whole, added = self.split(load, position, pieces)
        return added + (inference(whole) if whole.tokens else 0.0)

    def split(self, load: Load, position: Position, pieces: Iterable[Piece]) -> tuple[Load, float]:
        """The batch with the rows that join it, and the seconds of everything else."""
        added = 0.0
        for piece in pieces:
            if isinstance(piece, Backward):
                added += self.backward(piece.low, piece.high)
            elif self.joined:
                load = joined(load, piece)
            else:
                added += self.forward(piece.low, piece.high)
            after = position.after(piece)
            added += self.step if after.step > position.step else 0.0
            position = after
        return load, added


def joined(load: Load, piece: Forward) -> Load:
    """With a window of training as rows of the batch; each predicts a token, so each passes the head."""
    tokens = piece.high - piece.low
    return load._replace(
        tokens=load.tokens + tokens,
        chunk_work=load.chunk_work + tokens * (piece.low + tokens / 2.0),
        sequences=load.sequences + 1,
        sampled=load.sampled + tokens,
    )


@dataclass
class Tuning:
    """A job as schedulers see it; it computes nothing.

    pages: of the engine's pool, what keys and values of a sequence of so many tokens take.
    """

    position: Position
    cost: TuningTime
    pages: Callable[[int], int] = lambda tokens: 0
    error: str = ""
    """Why it stopped before its end."""
    cancelled: bool = False

    @property
    def over(self) -> bool:
        return self.position.finished or self.cancelled or bool(self.error)

    @property
    def wanted_pages(self) -> int:
        """To hold the sequence in work."""
        return 0 if self.over else self.pages(self.position.length)

    def run(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self.position = self.position.after(piece)

    def drop(self) -> None:
        """Inference needs the pages: the sequence in work is begun again later."""
        self.position = self.position.dropped()

    def cancel(self) -> None:
        """End the job, without another step; what it held is free."""
        self.cancelled = True
        self.drop()


SLOWEST, DRIFT = 4.0, 0.2
"""Bounds and weight of the correction that measured pieces make to the fitted cost."""


class FineTune(Tuning):
    """The job itself. After each optimiser step `publish` gets (version, a copy of the adapters).

    What is published never changes: a request that began with one version ends with it.
    """

    def __init__(
        self,
        trainer: TokenTrainer,
        cost: TuningTime,
        pages: Callable[[int], int] = lambda tokens: 0,
        publish: Callable[[int, Adapters], Any] | None = None,
    ) -> None:
        super().__init__(trainer.position, cost, pages)
        self.trainer = trainer
        self.published: tuple[int, Adapters] = (trainer.version, trainer.adapters.copy())
        self.busy_s = 0.0
        """Seconds spent in pieces."""
        self._publish = publish
        self._fitted = cost
        self._pace = 1.0

    def run(self, pieces: Iterable[Piece]) -> None:
        """Do them. A loss that is no number ends the job, not the engine."""
        from headway.training.token_trainer import Diverged

        pieces = list(pieces)
        if self.over or not pieces:
            return
        expected = self._fitted.seconds(NOTHING, Load(0), self.position, pieces)
        begin = time.perf_counter()
        try:
            for piece in pieces:
                self.trainer.run(piece)
                if self.trainer.version > self.published[0]:
                    self._step()
        except Diverged as error:
            self.error = str(error)
        self.position = self.trainer.position
        seconds = time.perf_counter() - begin
        self.busy_s += seconds
        self._keep_pace(seconds / max(expected, 1e-9))

    def _step(self) -> None:
        self.published = (self.trainer.version, self.trainer.adapters.copy())
        if self._publish is not None:
            self._publish(*self.published)

    def _keep_pace(self, ratio: float) -> None:
        """A machine that is busy with other things is slower than it was when its pieces were measured."""
        self._pace += DRIFT * (min(max(ratio, 1.0 / SLOWEST), SLOWEST) - self._pace)
        fitted = self._fitted
        self.cost = replace(
            fitted,
            forward=fitted.forward.scaled(self._pace),
            backward=fitted.backward.scaled(self._pace),
            step=fitted.step * self._pace,
        )

    def drop(self) -> None:
        self.trainer.drop()
        super().drop()


NOTHING = IterationTime((0.0, 1.0), (0.0, 0.0))
"""The cost of pieces without a batch."""


def kv_pages(kv_bytes: int, page_bytes: int) -> Callable[[int], int]:
    """Pages of a pool that the keys and values of a training sequence take, by its tokens."""
    return lambda tokens: -(-tokens * kv_bytes // page_bytes)


def measure_pieces(trainer: TokenTrainer, windows: Sequence[int], rounds: int = 3) -> TuningTime:
    """Time windows of several sizes over whole sequences of a trainer; it is left as it was found."""
    pieces: Mapping[type, list[tuple[int, int]]] = {Forward: [], Backward: []}
    seconds: Mapping[type, list[float]] = {Forward: [], Backward: []}
    trainer.drop()
    for _ in range(rounds):
        for size in windows:
            while not _last(trainer.position, size):
                piece = trainer.position.piece(min(size, trainer.position.left))
                begin = time.perf_counter()
                trainer.run(piece)
                seconds[type(piece)].append(time.perf_counter() - begin)
                pieces[type(piece)].append((piece.low, piece.high))
            trainer.drop()
    return TuningTime(
        PieceTime.fit(pieces[Forward], seconds[Forward]), PieceTime.fit(pieces[Backward], seconds[Backward])
    )


def _last(position: Position, size: int) -> bool:
    """Whether the next window enters the lowest layer, which costs less than the others and ends a sequence."""
    return position.layer is not None and position.layer == position.course.lowest
