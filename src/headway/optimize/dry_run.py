"""`--dry-run`: what a model with a fixed recipe will need, predicted before anything is loaded for running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.core.budget import Budget, Violation
from headway.core.errors import Lacking
from headway.core.model import Model
from headway.core.recipe import Recipe
from headway.core.system import Context, WeightSettings
from headway.core.target import Target
from headway.core.units import show
from headway.core.workload import Workload
from headway.llm.weights.transform import WeightTransform
from headway.optimize.applying import check, plug_policies, prepared
from headway.optimize.subjects import make_subject, stored_forms


@dataclass(frozen=True)
class Plan:
    """Predictions only; `owners` are bytes by what holds them."""

    model: Model
    recipe: Recipe
    budget: Budget
    target: Target
    predicted: Mapping[str, float]
    owners: Mapping[str, float]

    @property
    def violations(self) -> list[Violation]:
        known = [limit for limit in self.budget.limits if limit.measured_key(self.predicted) in self.predicted]
        return Budget(tuple(known)).check(self.predicted)

    @property
    def met(self) -> bool:
        return not self.violations

    def as_json(self) -> dict[str, Any]:
        return {
            "met": self.met,
            "budget": str(self.budget),
            "recipe": self.recipe.as_json(),
            "predicted": dict(self.predicted),
            "memory_by_owner": dict(self.owners),
            "missed": [violation.as_json() for violation in self.violations],
        }

    def table(self) -> str:
        lines = [f"predicted for {self.model.name} with {self.recipe} on {self.target.name}; nothing was run"]
        units = {"_s": "s", "_bytes": "B"}
        for metric, value in self.predicted.items():
            unit = next((unit for end, unit in units.items() if metric.endswith(end)), "")
            lines.append(f"  {metric:<14} {show(value, unit)}")
        lines += ["memory by owner"] + [f"  {owner:<14} {show(value, 'B')}" for owner, value in self.owners.items()]
        lines += [f"would miss {violation}" for violation in self.violations]
        return "\n".join(lines)


def dry_run(model: Model, budget: Budget, target: Target, workload: Workload, recipe: Recipe, threads: int) -> Plan:
    """Raises `Lacking` when the target's memory does not hold what the model will need."""
    check(recipe, model, target)
    subject = make_subject(model, workload)
    stored = stored_forms(model)
    for system, settings in prepared(recipe):
        if isinstance(system, WeightTransform) and isinstance(settings, WeightSettings):
            stored |= {site.name: system.stored(site, settings) for site in system.taken(settings, model.sites())}
    plugged = plug_policies(recipe, model, Context(target, threads=threads))
    parts = subject.predict(target, stored, threads, plugged)
    predicted = {metric: sum(values.values()) for metric, values in parts.items()}
    needed = predicted.get("memory_bytes", 0.0)
    free = min(target.available_bytes, target.ram_bytes)
    if needed > free:
        raise Lacking(
            f"{model.name} does not fit: it needs {show(needed, 'B')} and {target.name} has {show(free, 'B')} free",
            "free memory, shorten the context or use a smaller recipe",
        )
    return Plan(model, recipe, budget, target, predicted, parts.get("memory_bytes", {}))
