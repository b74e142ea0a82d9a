"""`Candidate`: a recipe with what was predicted and what was measured of it; Pareto fronts and choices among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headway.core.budget import Budget, Objective, Violation
from headway.core.recipe import Recipe

AXES: tuple[str, ...] = ("tpot_s", "latency_s", "memory_bytes", "size_bytes", "loss")
"""What a front trades, all to be small; `loss` is 1 - quality."""


@dataclass(frozen=True)
class Candidate:
    """Metrics are keyed as in the JSON interface: `tpot_s`, `ttft_s`, `latency_s`, `memory_bytes`, `quality` ..."""

    recipe: Recipe
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    raw_loss: Mapping[str, float] = field(default_factory=dict)
    """Predicted loss by kind of site, before any correction by what was measured."""

    def with_measured(self, **metrics: float) -> Candidate:
        return replace(self, measured={**self.measured, **metrics})

    def best_known(self) -> dict[str, float]:
        """Measured values, and predicted ones where nothing was measured."""
        return {**self.predicted, **self.measured}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Candidate:
        """Of `as_json`, and `raw_loss` where it is there too."""
        recipe = Recipe.from_json(value["recipe"])
        return cls(recipe, value["predicted"], value["measured"], value.get("raw_loss", {}))

    def as_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.as_json(),
            "measured": dict(self.measured),
            "predicted": dict(self.predicted),
        }


def costs(candidate: Candidate) -> dict[str, float]:
    """The candidate's place on every axis it has a measured value for."""
    values = {axis: candidate.measured[axis] for axis in AXES if axis in candidate.measured}
    if "quality" in candidate.measured:
        values["loss"] = 1.0 - candidate.measured["quality"]
    return values


def dominates(first: Candidate, second: Candidate) -> bool:
    """Whether `first` is nowhere worse than `second` on their common axes and somewhere better."""
    a, b = costs(first), costs(second)
    shared = [axis for axis in AXES if axis in a and axis in b]
    return all(a[axis] <= b[axis] for axis in shared) and any(a[axis] < b[axis] for axis in shared)


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other dominates, in the given order."""
    return [c for c in candidates if not any(dominates(other, c) for other in candidates if other is not c)]


def violations(candidate: Candidate, budget: Budget) -> list[Violation]:
    return budget.check(candidate.best_known())


def worst_miss(candidate: Candidate, budget: Budget) -> float:
    """The largest relative miss of the budget (0: safely within).

    Quality is taken half-way to the low end of its interval: about five times in six held-out data is no worse.
    """
    known = candidate.best_known()
    quality = known.get("quality", 0.0)
    safe = {**known, "quality": (quality + known.get("quality_low", quality)) / 2}
    return max((violation.missed_by for violation in budget.check(safe)), default=0.0)


def choose(candidates: Sequence[Candidate], budget: Budget, objective: Objective) -> tuple[Candidate, bool]:
    """The best candidate and whether it meets the budget.

    Among those that meet it safely (`worst_miss`), else among those that meet it, the smallest objective. If none
    does, the one whose worst relative miss is smallest.
    """
    meeting = [c for c in candidates if not violations(c, budget)]
    if meeting:
        safe = [c for c in meeting if not worst_miss(c, budget)]
        return min(safe or meeting, key=lambda c: objective.value(c.best_known())), True
    return min(candidates, key=lambda c: max(v.missed_by for v in violations(c, budget))), False
