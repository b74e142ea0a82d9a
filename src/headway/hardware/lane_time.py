"""`LaneTime`: how long a pass takes on a share of the machine, alone or beside another lane (Nexus, 2025).

A pass is a few operators, each bound by compute or by memory at its share r of the machine:

    T(r) = sum over operators of max(compute / speed_c(r), memory / bandwidth(r))

`speed` grows as r up to a knee and `gain` times as fast beyond it (Nexus names the two regimes and fits them offline;
the formula is ours). Beside another lane, decodes find less bandwidth while that one is in attention, which it is
with probability p = T_attention / T (its own time, so p is found by repetition).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load

MANY = 1024
"""Tokens from which the products of a pass are taken to be bound by compute."""


@dataclass(frozen=True)
class Speed:
    """Speed over that of the whole machine, at a share of it: two straight lines that meet at `knee`; 1 at 1."""

    knee: float = 1.0
    gain: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.knee <= 1 or not 0 <= self.gain <= 1:
            raise BadInput(f"a speed with knee {self.knee} and gain {self.gain}", "both lie in 0..1, the knee above 0")

    def __call__(self, share: float) -> float:
        def line(r: float) -> float:
            return min(r, self.knee) + self.gain * max(r - self.knee, 0.0)

        return line(share) / line(1.0)


class Operators(NamedTuple):
    """Seconds of a pass's operators with the whole machine, none of it waiting for the other kind."""

    linear: float
    """Products with weights, as measured: the larger of the next two."""
    linear_compute: float
    linear_memory: float
    attention: float
    """Of chunks."""
    cache: float
    """Of decodes: reading keys and values."""
    fixed: float


@dataclass(frozen=True)
class LaneTime:
    """`cost` is the whole machine's. `attention_demand`, `linear_demand`: shares of the bandwidth that a lane of
    prompts wants while it is in attention, and in the rest of a pass; both 0: no contention.
    """

    cost: IterationTime
    compute: Speed = field(default_factory=Speed)
    memory: Speed = field(default_factory=Speed)
    attention: Speed = field(default_factory=Speed)
    attention_demand: float = 0.5
    linear_demand: float = 0.0
    overhead_s: float = 0.0
    """Seconds of a pass that no share changes (part of what `cost` says of one token)."""

    def operators(self, load: Load) -> Operators:
        cost = self.cost
        linear = cost.linear(load.tokens) - self.overhead_s + cost.row * load.sampled
        memory = cost.linear(1) - self.overhead_s
        slope = (cost.linear(2 * MANY) - cost.linear(MANY)) / MANY
        return Operators(
            linear,
            slope * load.tokens + cost.row * load.sampled,
            memory,
            cost.chunk * load.chunk_work,
            cost.decode * load.decode_context,
            self.overhead_s + cost.sequence * load.sequences,
        )

    def alone(self, load: Load, share: float) -> float:
        """Seconds with a share of the machine and nothing beside it."""
        return self._seconds(self.operators(load), share, 1.0)

    def both(self, prefill: Load, decode: Load, share: float) -> tuple[float, float]:
        """Seconds of (a lane of prompts with `share`, a lane of decodes with the rest) at the same time."""
        return self.shared(self.operators(prefill), self.operators(decode), share)

    def shared(self, first: Operators, second: Operators, share: float) -> tuple[float, float]:
        """As `both`, for operators already known."""
        time = self._seconds(first, share, 1.0)
        alone = self._seconds(second, 1.0 - share, 1.0)
        demand = min((second.linear_memory + second.cache) / max(alone, 1e-12), 1.0)
        if not self.attention_demand and not self.linear_demand:
            return time, alone
        decode_time = alone
        for _ in range(2):
            p = min(first.attention / self.attention(share) / max(time, 1e-12), 1.0)
            left = p * _left(demand, self.attention_demand) + (1.0 - p) * _left(demand, self.linear_demand)
            decode_time = self._seconds(second, 1.0 - share, left)
            slowed = 1.0 / _left(self.attention_demand, demand) if self.attention_demand else 1.0
            time = self._seconds(first, share, 1.0, slowed)
        return time, decode_time

    def _seconds(self, work: Operators, share: float, bandwidth: float, slowed: float = 1.0) -> float:
        pull = self.memory(share) * bandwidth
        roof = max(work.linear_compute, work.linear_memory)
        bound = max(work.linear_compute / self.compute(share), work.linear_memory / pull)
        return (
            work.linear * bound / max(roof, 1e-15)
            + work.attention / self.attention(share) * slowed
            + work.cache / pull
            + work.fixed
        )


def _left(own: float, other: float) -> float:
    """Share of the bandwidth one wants that it gets beside another's demand: split by demand once it is short."""
    return 1.0 if own + other <= 1.0 else 1.0 / (own + other)


class Sample(NamedTuple):
    """A measured pass. `beside`: what ran on the other lane, with the other share; `prompts`: a lane of prompts."""

    load: Load
    share: float
    seconds: float
    prompts: bool
    beside: Load | None = None


def predict(model: LaneTime, sample: Sample) -> float:
    """Seconds of a sample by a model."""
    if sample.beside is None:
        return model.alone(sample.load, sample.share)
    if sample.prompts:
        return model.both(sample.load, sample.beside, sample.share)[0]
    return model.both(sample.beside, sample.load, 1.0 - sample.share)[1]


def fit_lanes(cost: IterationTime, samples: Sequence[Sample]) -> LaneTime:
    """Speeds and demands that make the mean relative error over samples least, found one after the other on a grid.

    Raises `BadInput` without a sample alone on a part of the machine.
    """
    alone = [sample for sample in samples if sample.beside is None]
    both = [sample for sample in samples if sample.beside is not None]
    if not any(sample.share < 1 for sample in alone):
        raise BadInput("no pass was measured on a part of the machine", "measure shares below 1")
    model = LaneTime(cost, attention_demand=0.0, linear_demand=0.0)
    speeds = [Speed(knee, gain) for knee in np.linspace(0.1, 1.0, 10) for gain in np.linspace(0.0, 1.0, 11)]
    overheads = [float(part) * cost.linear(1) for part in np.linspace(0.0, 0.8, 9)]
    for _ in range(2):
        model = _best([replace(model, overhead_s=overhead) for overhead in overheads], alone)
        for name in ("compute", "memory", "attention"):
            model = _best([replace(model, **{name: speed}) for speed in speeds], alone)
    demands = np.linspace(0.0, 1.0, 21)
    for _ in range(2 if both else 0):
        for name in ("attention_demand", "linear_demand"):
            model = _best([replace(model, **{name: float(demand)}) for demand in demands], both)
    return model


def error(model: LaneTime, samples: Sequence[Sample]) -> float:
    """Mean absolute relative error."""
    return float(np.mean([abs(predict(model, sample) / sample.seconds - 1.0) for sample in samples]))


def _best(models: Sequence[LaneTime], samples: Sequence[Sample]) -> LaneTime:
    return min(models, key=lambda model: error(model, samples))
