"""Evolutionary search over a space: mutants and crossovers of the best, children over the limit redrawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from headway.core.errors import HeadwayError
from headway.core.progress import Progress
from headway.vision.search.space import Genotype, SearchSpace

Score = Callable[[Sequence[Genotype]], npt.NDArray[np.floating]]
TRIES = 1000
"""Draws of one child before the search says that the limit leaves no room."""


@dataclass(frozen=True)
class Evolution:
    """The best `parents` of a population of `population` are kept; half of the others are mutants, half crossovers."""

    population: int = 100
    iterations: int = 500
    parents: float = 0.25
    mutate: float = 0.1
    """Chance that a group of choices is redrawn."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Another chance for some groups."""
    by_group: bool = False
    """Crossovers take whole groups from one parent, not single choices."""

    def run(
        self,
        space: SearchSpace,
        score: Score,
        fits: Callable[[Genotype], bool],
        seed: int,
        progress: Progress | None = None,
        start: Sequence[Genotype] = (),
    ) -> tuple[list[Genotype], list[float]]:
        """(the last population, best first; the best score after every iteration).

        Every network asked of `score` fits. `start`: networks known to fit, among the first population. Raises an
        error of exit code 1 where none is found that fits.
        """
        rng = random.Random(seed)
        people = [genotype for genotype in start if fits(genotype)][: self.population]
        while len(people) < self.population:
            people.append(self._draw(lambda: space.random(rng), fits))
        scores = list(score(people))
        best = [max(scores)]
        keep = max(2, round(self.parents * self.population))
        with (progress or Progress()).task("evolving", self.iterations) as task:
            for _ in range(self.iterations):
                order = sorted(range(len(people)), key=lambda i: -scores[i])[:keep]
                parents, known = [people[i] for i in order], [scores[i] for i in order]
                children = []
                for index in range(self.population - keep):
                    make = partial(self._cross if index % 2 else self._mutate, space, parents, rng)
                    children.append(self._draw(make, fits))
                people, scores = parents + children, known + list(score(children))
                best.append(max(scores))
                task.advance()
        order = sorted(range(len(people)), key=lambda i: -scores[i])
        return [people[i] for i in order], best

    def _draw(self, make: Callable[[], Genotype], fits: Callable[[Genotype], bool]) -> Genotype:
        for _ in range(TRIES):
            child = make()
            if fits(child):
                return child
        raise HeadwayError(f"none of {TRIES} networks drawn is within the limit", "allow more, or choose another space")

    def _mutate(self, space: SearchSpace, parents: Sequence[Genotype], rng: random.Random) -> Genotype:
        kept = dict(rng.choice(parents))
        for group, names in space.groups.items():
            if rng.random() < self.rates.get(group, self.mutate):
                for name in names:
                    kept.pop(name, None)
        return space.random(rng, kept)

    def _cross(self, space: SearchSpace, parents: Sequence[Genotype], rng: random.Random) -> Genotype:
        one, other = rng.sample(parents, 2)
        made: Genotype = {}
        for names in space.groups.values():
            side = rng.random() < 0.5
            for name in names:
                side = side if self.by_group else rng.random() < 0.5
                first, second = (one, other) if side else (other, one)
                if name in first or name in second:
                    made[name] = first.get(name, second.get(name))  # type: ignore[assignment]
        return space.random(rng, made)
