"""The brute-force oracle: networks of a small space trained one by one, and where a search's network stands among them.

It refuses to judge a space whose best network is no further above its middle than three standard deviations of the
value that is ranked: there, a rank would be a tossed coin.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.progress import Progress
from headway.vision.search.images import Images
from headway.vision.search.network import Macro
from headway.vision.search.space import Genotype, SearchSpace
from headway.vision.search.train import TrainRecipe, trained

Row = npt.NDArray[np.float64]
LEAST_SPREAD = 3.0
RIDGE = 0.3


@dataclass(frozen=True)
class Oracle:
    """Every genotype of a space with its accuracy in points: trained, or fitted to those that were."""

    space: SearchSpace
    measured: Mapping[str, Sequence[float]]
    """Text of a genotype -> accuracy in points of every seed, at least two."""

    def __post_init__(self) -> None:
        if any(len(seeds) < 2 for seeds in self.measured.values()) or len(self.measured) < 3:
            raise BadInput("an oracle needs two seeds of at least 3 networks", "train them")

    @cached_property
    def genotypes(self) -> dict[str, Genotype]:
        return {self.space.text(genotype): genotype for genotype in self.space.enumerate()}

    @cached_property
    def accuracy(self) -> dict[str, float]:
        """Points; the mean over seeds where the network was trained, else an additive ridge fit to those that were."""
        means = {text: float(np.mean(seeds)) for text, seeds in self.measured.items()}
        if len(means) == len(self.genotypes):
            return means
        weights, bias = self._fit(list(means))
        return {
            text: means[text] if text in means else float(self.space.encode(genotype) @ weights + bias)
            for text, genotype in self.genotypes.items()
        }

    def _fit(self, texts: Sequence[str]) -> tuple[Row, float]:
        x = np.stack([self.space.encode(self.genotypes[text]) for text in texts]).astype(np.float64)
        y = np.array([np.mean(self.measured[text]) for text in texts])
        bias = float(y.mean())
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - bias))
        return weights, bias

    @cached_property
    def seed_sd(self) -> float:
        """Standard deviation of one training, in points."""
        return float(np.sqrt(np.mean([np.var(seeds, ddof=1) for seeds in self.measured.values()])))

    @cached_property
    def spread(self) -> float:
        """(best - median) of the trained networks over the standard deviation of their means."""
        means = np.array([np.mean(seeds) for seeds in self.measured.values()])
        seeds = np.mean([len(values) for values in self.measured.values()])
        return float((means.max() - np.median(means)) / max(self.seed_sd / np.sqrt(seeds), 1e-9))

    @property
    def judges(self) -> bool:
        return self.spread >= LEAST_SPREAD

    def standing(self, genotype: Genotype, score: Callable[[str, float], float]) -> float:
        """Share of the space that is at least as good: 1/size for the best. `score`: (text, points) -> value.

        Raises `BadInput` where the spread does not allow a judgement.
        """
        if not self.judges:
            raise BadInput(
                f"the space's spread is {self.spread:.1f} seed deviations",
                f"harden the data until it is {LEAST_SPREAD:.0f}, or average more seeds",
            )
        values = {text: score(text, points) for text, points in self.accuracy.items()}
        mine = values[self.space.text(genotype)]
        return sum(value >= mine for value in values.values()) / len(values)

    def random_search(self, trainings: int, score: Callable[[str, float], float], seed: int = 0) -> float:
        """Expected standing of random search: the best of so many networks by one noisy training of each."""
        rng = np.random.default_rng(seed)
        texts = list(self.accuracy)
        points = np.array([self.accuracy[text] for text in texts])
        values = np.array([score(text, p) for text, p in self.accuracy.items()])
        standing = np.array([(values >= value).mean() for value in values])
        found = []
        for _ in range(1000):
            drawn = rng.choice(len(texts), min(trainings, len(texts)), replace=False)
            noisy = points[drawn] + self.seed_sd * rng.standard_normal(len(drawn))
            seen = [score(texts[i], float(value)) for i, value in zip(drawn, noisy, strict=True)]
            found.append(standing[drawn[np.argmax(seen)]])
        return float(np.mean(found))


def brute_force(
    macro: Macro,
    images: Images,
    cache: StepCache,
    *,
    count: int = 0,
    seeds: int = 2,
    recipe: TrainRecipe | None = None,
    progress: Progress | None = None,
) -> Oracle:
    """Train `count` networks (0: all) of the space, in a fixed random order; test accuracies. Kept by content."""
    every = list(macro.space.enumerate())
    order = random.Random(0).sample(every, len(every))[: count or len(every)]
    measured: dict[str, list[float]] = {}
    with (progress or Progress()).task(f"training {len(order)} networks", len(order) * seeds) as task:
        for genotype in order:
            for seed in range(seeds):
                done = trained(macro.net(genotype), images, recipe or TrainRecipe(), seed, cache)
                measured.setdefault(macro.space.text(genotype), []).append(100 * done.test)
                task.advance()
    return Oracle(macro.space, measured)
