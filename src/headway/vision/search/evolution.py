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
    """Crossovers take whole groups from one parent, not single choices; what others' presence tells (depths) follows
    from which blocks came along."""

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
        people = self._first(space, fits, rng, start)
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

    def _first(
        self, space: SearchSpace, fits: Callable[[Genotype], bool], rng: random.Random, start: Sequence[Genotype]
    ) -> list[Genotype]:
        """Random networks beside `start`; mutants of those where the limit is too tight to draw within it."""
        people = [genotype for genotype in start if fits(genotype)][: self.population]
        try:
            while len(people) < self.population:
                people.append(self._draw(partial(space.random, rng), fits))
        except HeadwayError:
            if not people:
                raise
        while len(people) < self.population:
            people.append(self._draw(partial(self._mutate, space, people, rng), fits))
        return people

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
        if self.by_group:
            while True:
                parts: Genotype = {}
                for names in space.groups.values():
                    parent = rng.choice((one, other))
                    parts |= {n: parent[n] for n in names if n in parent and space.by_name[n].encoded}
                child = space.told(parts)
                if child is not None:  # else a later block came without the one before
                    return child
        made: Genotype = {}
        for name in space.by_name:
            first, second = rng.sample((one, other), 2)
            if name in first or name in second:
                made[name] = first.get(name, second.get(name))  # type: ignore[assignment]
        return space.random(rng, made)
