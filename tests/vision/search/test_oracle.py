"""The oracle ranks what it knows, fits the rest, and refuses where noise would rank."""

from __future__ import annotations

import random

import numpy as np
import pytest

from headway.core.errors import BadInput
from headway.vision.search.layerwise import d400
from headway.vision.search.oracle import Oracle


def made(noise: float, count: int) -> tuple[Oracle, dict[str, float]]:
    space, rng = d400().space, np.random.default_rng(0)
    weights = rng.normal(0, 4, space.width)
    truth = {space.text(g): 80 + float(space.encode(g) @ weights) for g in space.enumerate()}
    chosen = random.Random(0).sample(list(truth), count)
    return Oracle(space, {t: [truth[t] + noise * rng.standard_normal() for _ in range(2)] for t in chosen}), truth


def test_an_additive_space_is_fitted_from_a_part_of_it() -> None:
    oracle, truth = made(0.0, 60)
    assert max(abs(oracle.accuracy[text] - value) for text, value in truth.items()) < 1.0
    best = max(truth, key=lambda text: truth[text])
    assert oracle.standing(oracle.genotypes[best], lambda _, points: points) <= 0.02


def test_a_space_that_noise_ranks_is_refused() -> None:
    oracle, _ = made(20.0, 60)
    assert not oracle.judges
    with pytest.raises(BadInput, match="seed deviations"):
        oracle.standing(next(iter(oracle.genotypes.values())), lambda _, points: points)


def test_random_search_gets_better_with_trainings() -> None:
    oracle, _ = made(0.5, 400)
    few, many = (oracle.random_search(n, lambda _, points: points) for n in (2, 20))
    assert many < few < 0.5


def test_one_seed_is_not_enough() -> None:
    with pytest.raises(BadInput, match="two seeds"):
        Oracle(d400().space, {"a": [1.0], "b": [2.0], "c": [3.0]})
