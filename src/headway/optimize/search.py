"""Proposals: recipes worth trying, found with Optuna on predictions alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headway.core.budget import OBJECTIVES, Budget, Objective
from headway.core.model import Model
from headway.core.recipe import Recipe, Step
from headway.core.target import Target
from headway.hardware.correct import NONE, Correction
from headway.optimize.candidate import Candidate, worst_miss
from headway.optimize.subject import Subject
from headway.optimize.table import ChoiceTable

TRIALS = 120
LOSSES = 1e-4, 1.0
"""Least and largest loss a recipe may be predicted to add."""
PRICES = 1e-3, 1e3
"""Of the cost that is no objective, over that of the objective: least and largest."""
BYTES, SECONDS = {"size", "memory"}, {"latency", "tpot", "throughput"}
"""Limits that fewer bytes, and faster weights, help to hold."""


@dataclass(frozen=True)
class Space:
    """What the search may vary: choices of each site, and one policy (or none) in each free slot."""

    table: ChoiceTable
    policies: Mapping[str, Sequence[Step]]
    fixed: Recipe
    plug: Callable[[Recipe], Model]
    """The unmodified model with a recipe's policies."""


@dataclass(frozen=True)
class Corrections:
    """What measured candidates taught of losses, and a correction of each metric's parts."""

    loss: Correction = NONE
    """Measured over predicted loss, by kind of site: a tied head also feeds the network, which no term predicts."""
    offset: float = 0.0
    """-ln quality of the unmodified model: its kernels are not exact either."""
    power: float = 1.0
    """`Subject.loss_power`."""
    metrics: Mapping[str, Correction] = field(default_factory=dict)
    margin: float = 1.0
    """-ln of the low end of a quality's interval over -ln of the quality: how far from a limit is safe."""

    def apply(self, parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Metric -> its corrected sum."""
        return {metric: self.metrics.get(metric, NONE)(values) for metric, values in parts.items()}

    def quality(self, raw_loss: Mapping[str, float]) -> float:
        """Quality that predicted losses mean."""
        return math.exp(-self.offset - self.loss(raw_loss) ** self.power)

    def limit(self, lost: float) -> float:
        """The corrected loss at which -ln quality is `lost`."""
        return float(max(lost - self.offset, 1e-9) ** (1.0 / self.power))

    def factor(self, kind: str) -> float:
        return self.loss.factors.get(kind, self.loss.common)


def propose(
    space: Space,
    subject: Subject,
    target: Target,
    threads: int,
    budget: Budget,
    objective: Objective,
    corrections: Corrections,
    count: int,
    seed: int,
) -> list[Candidate]:
    """At most `count` candidates that trade the objective against quality, best predictions first.

    Those that are predicted to hold the budget come first, by the objective; then those that nearly do.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found: dict[str, Candidate] = {}
    table = space.table
    costs = {name: table.seconds if name == "latency" else table.nbytes for name in OBJECTIVES}
    cost = costs[objective.name]
    other = table.nbytes if cost is table.seconds else table.seconds
    cost, other = (values / max(values[:, 0].sum(), 1e-30) for values in (cost, other))
    # What is limited besides the objective may have to be paid for with it. Otherwise a small price breaks ties.
    limited = {limit.metric for limit in budget.limits} & (BYTES if objective.name == "latency" else SECONDS)
    prices = PRICES if limited else PRICES[:1]

    def evaluate(trial: Any) -> tuple[float, float]:
        limit = trial.suggest_float("loss", *LOSSES, log=True)
        allowed = [True] + [
            trial.suggest_categorical(f"choice {number}", [True, False]) for number in range(1, len(table.choices))
        ]
        steps = [
            steps[pick]
            for slot, steps in space.policies.items()
            if (pick := trial.suggest_categorical(slot, [-1, *range(len(steps))])) >= 0
        ]
        both = cost + (trial.suggest_float("price", *prices, log=True) if limited else prices[0]) * other
        candidate = predict(space, subject, target, threads, table.allowing(allowed), both, limit, steps, corrections)
        found.setdefault(str(candidate.recipe), candidate)
        return objective.value(candidate.predicted), 1.0 - candidate.predicted["quality"]

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=24, multivariate=True)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    every = {f"choice {number}": True for number in range(1, len(table.choices))} | dict.fromkeys(space.policies, -1)
    for aim in _aims(budget, corrections.margin):
        for price in prices:
            study.enqueue_trial({"loss": aim, **every} | ({"price": price} if limited else {}))
    study.optimize(evaluate, n_trials=TRIALS)
    return rank(list(found.values()), budget, objective)[:count]


def predict(
    space: Space,
    subject: Subject,
    target: Target,
    threads: int,
    table: ChoiceTable,
    cost: Any,
    loss_limit: float,
    policies: Sequence[Step],
    corrections: Corrections,
) -> Candidate:
    """The cheapest allocation within a loss, as a candidate with corrected predictions."""
    picked = table.scaled(corrections.factor).allocate(cost, corrections.limit(loss_limit))
    behaviour = Recipe(tuple(policies))
    predicted = subject.predict(target, table.stored(picked), threads, space.plug(space.fixed + behaviour))
    loss = table.by_kind(picked)
    metrics = {**corrections.apply(predicted), "quality": corrections.quality(loss)}
    metrics["quality_low"] = metrics["quality"] ** corrections.margin
    return Candidate(space.fixed + table.recipe(picked) + behaviour, metrics, raw_loss=loss)


def rank(candidates: Sequence[Candidate], budget: Budget, objective: Objective) -> list[Candidate]:
    """Candidates that hold the budget by the objective, then the others by their worst miss."""

    def key(candidate: Candidate) -> tuple[float, float]:
        return worst_miss(candidate, budget), objective.value(candidate.predicted)

    return sorted(candidates, key=key)


def _aims(budget: Budget, margin: float) -> list[float]:
    """Losses to try first: a ladder, and those that just hold the budget's quality."""
    ladder = list(np.geomspace(3e-3, 0.5, 8))
    for limit in budget.limits:
        if limit.metric == "quality" and 0.0 < limit.value < 1.0:
            ladder = [-math.log(limit.value) * 2 / (1 + margin) * share for share in (0.97, 0.85, 0.7, 0.5)] + ladder
    return [min(max(aim, LOSSES[0]), LOSSES[1]) for aim in ladder]
