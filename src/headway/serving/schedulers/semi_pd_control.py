"""semi-PD's controller: two latency models that are fitted while serving, and the walk they guide (Algorithm 1).

    TTFT(x) = a1 / (x - lambda) + b1      an M/M/1 queue whose server runs at x percent of the machine
    TPOT(y) = a2 / y + b2

x, y: percent of the compute that the phase really gets. lambda = 100 r l: arrivals per second times the seconds that
the whole machine needs for one prompt, in percent of the machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

KEPT = 20
"""Windows that the models are fitted to."""


@dataclass(frozen=True)
class Split:
    """Percent of the compute for each phase, in (0, 100]; where the sum exceeds 100 they compete."""

    x: float
    y: float

    @property
    def prefill(self) -> float:
        """Percent that prompts get while both phases run."""
        return 100.0 * self.x / (self.x + self.y)

    @property
    def decode(self) -> float:
        return 100.0 * self.y / (self.x + self.y)

    def toward_prefill(self, step: float) -> Split:
        """A step up for prompts: out of the free part while there is one, then at the answers' cost."""
        if self.x + step <= 100.0:
            return replace(self, x=self.x + step)
        return Split(100.0, max(self.y - step, step))

    def toward_decode(self, step: float) -> Split:
        other = Split(self.y, self.x).toward_prefill(step)
        return Split(other.y, other.x)


@dataclass(frozen=True)
class Window:
    """What some iterations under one split showed. Times in seconds; None: nobody was there to see."""

    split: Split
    ttft: float | None
    """Quantile of the time to the first token."""
    tpot: float | None
    """Quantile of the time between tokens."""
    load: float
    """lambda."""


class LatencyModel:
    """Fits both forms to the last windows; with fewer than two different splits it keeps what the profile says."""

    def __init__(self) -> None:
        self._ttft: deque[tuple[float, float, float]] = deque(maxlen=KEPT)  # share, lambda, seconds
        self._tpot: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self.prompt_s = 0.0
        """Seconds the whole machine needs for a prompt."""
        self.token_s = 0.0
        """Seconds the whole machine needs for an iteration of decodes."""

    def observe(self, window: Window) -> None:
        if window.ttft is not None:
            self._ttft.append((window.split.prefill, window.load, window.ttft))
        if window.tpot is not None:
            self._tpot.append((window.split.decode, window.tpot))

    def ttft(self, x: float, load: float) -> float:
        """Seconds at a share and a lambda; infinite where the queue grows without end."""
        if x <= load:
            return inf
        seen = [(1.0 / (share - at), s) for share, at, s in self._ttft if share > at]
        a, b = fit(seen) if len({round(share, 6) for share, *_ in self._ttft}) > 1 and seen else (
            100.0 * self.prompt_s, 0.0,
        )  # fmt: skip
        return a / (x - load) + b

    def tpot(self, y: float) -> float:
        """Seconds at a share."""
        different = len({round(share, 6) for share, _ in self._tpot}) > 1
        a, b = fit([(1.0 / share, s) for share, s in self._tpot]) if different else (100.0 * self.token_s, 0.0)
        return a / y + b


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares of t = a u + b over (u, t), neither below 0."""
    count = len(points)
    mean_u, mean_t = (sum(values) / count for values in zip(*points, strict=True))
    spread = sum((u - mean_u) ** 2 for u, _ in points)
    a = sum((u - mean_u) * (t - mean_t) for u, t in points) / spread if spread > 0 else 0.0
    b = mean_t - a * mean_u
    if a < 0:
        return 0.0, mean_t
    if b < 0:
        return sum(u * t for u, t in points) / sum(u * u for u, _ in points), 0.0
    return a, b


def adjust(
    window: Window, model: LatencyModel, ttft_limit: float, tpot_limit: float, step: float, most_steps: int
) -> Split:
    """The split after a window. Both limits held, or both broken: nothing to move.

    The first step is taken on the observation alone: a model that still says all is well is not believed against it.
    """
    split = window.split
    prefill_holds = window.ttft is None or window.ttft <= ttft_limit
    decode_holds = window.tpot is None or window.tpot <= tpot_limit
    if prefill_holds == decode_holds:
        return split
    for taken in range(most_steps):
        if not prefill_holds:
            if taken and model.ttft(split.prefill, window.load) <= ttft_limit:
                break
            split = split.toward_prefill(step)
        else:
            if taken and model.tpot(split.decode) <= tpot_limit:
                break
            split = split.toward_decode(step)
    return split
