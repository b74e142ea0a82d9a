"""How long a call of a stage takes alone on each kind of instance: from a table, else from the measured batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load


@dataclass(frozen=True)
class Shape:
    """Mean lengths of a stage's calls, in tokens."""

    prompt: float
    output: float


def alone(cost: IterationTime, prompt: float, output: float) -> float:
    """Seconds of a call with nothing beside it: its prompt in one pass, then a token a pass."""
    steps = max(output - 1.0, 0.0)
    first = cost(Load(max(round(prompt), 1), prompt * prompt / 2.0, 0, 0, 1, 1))
    return first + steps * cost(Load(1, 0.0, 1, round(prompt + output / 2.0), 1, 1))


@dataclass(frozen=True)
class StageTimes:
    """What a workflow's dispatcher and queues believe. It sees a stage's mean answer, never the call's own."""

    kinds: tuple[str, ...]
    """Of each instance of the fleet."""
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By kind and stage: measured, a call alone."""
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    """By stage, where `seconds` has nothing."""
    costs: Mapping[str, IterationTime] = field(default_factory=dict)
    """By kind, where `seconds` has nothing."""
    _means: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.kinds:
            raise BadInput("a fleet without an instance", "give at least one")
        for kind, row in self.seconds.items():
            for stage, seconds in row.items():
                if not (isfinite(seconds) and seconds >= 0):
                    raise BadInput(f"{seconds} s for stage {stage!r} on {kind}", "give seconds, at least 0")

    def of(self, kind: str, stage: str, prompt: float | None = None) -> float:
        """Seconds of a call alone; prompt: its own tokens still to read, by default the stage's mean.

        Raises `BadInput` for a stage of which nothing is known.
        """
        known = self.seconds.get(kind)
        if known is not None and stage in known:
            return known[stage]
        cost, shape = self.costs.get(kind), self.shapes.get(stage)
        if cost is None or shape is None:
            raise BadInput(
                f"no time is known for stage {stage!r} on {kind!r}",
                "give its seconds there, or the stage's mean lengths and the batches measured on that kind",
            )
        return alone(cost, shape.prompt if prompt is None else prompt, shape.output)

    def mean(self, stage: str) -> float:
        """Over the fleet."""
        if stage not in self._means:
            self._means[stage] = sum(self.of(kind, stage) for kind in self.kinds) / len(self.kinds)
        return self._means[stage]


def shapes(stages: Sequence[tuple[str, int, int]]) -> dict[str, Shape]:
    """Mean lengths by stage of calls (stage, prompt, output)."""
    sums: dict[str, list[float]] = {}
    for stage, prompt, output in stages:
        held = sums.setdefault(stage, [0.0, 0.0, 0.0])
        held[0] += 1
        held[1] += prompt
        held[2] += output
    return {stage: Shape(prompt / count, output / count) for stage, (count, prompt, output) in sums.items()}
