"""Evolution keeps the limit and its best, and finds the optimum of a space that can be enumerated."""

from __future__ import annotations

import random

import numpy as np
import pytest

from headway.core.errors import HeadwayError
from headway.vision.search.accuracy_predictor import fit_predictor, predict
from headway.vision.search.apq_nets import mbv2
from headway.vision.search.evolution import Evolution
from headway.vision.search.ofa_nets import mbv3, mini
from headway.vision.search.space import Genotype


def test_it_finds_what_enumeration_finds_and_never_asks_beyond_the_limit() -> None:
    space, rng = mini().space, np.random.default_rng(0)
    gains, costs = rng.normal(size=space.width), rng.uniform(1, 2, space.width)

    def fits(genotype: Genotype) -> bool:
        return bool(space.encode(genotype) @ costs <= 7.0)

    def score(genotypes: list[Genotype]) -> np.ndarray:
        assert all(fits(genotype) for genotype in genotypes)
        return np.array([space.encode(genotype) @ gains for genotype in genotypes])

    found, best = Evolution(20, 30).run(space, score, fits, seed=0)  # type: ignore[arg-type]
    optimum = max(space.encode(g) @ gains for g in space.enumerate() if fits(g))
    assert best == sorted(best) and best[-1] == pytest.approx(optimum)
    assert space.encode(found[0]) @ gains == pytest.approx(optimum)


@pytest.mark.parametrize("by_group", [True, False])
@pytest.mark.parametrize("macro", [mbv3(), mbv2()], ids=["ofa", "apq"])
def test_children_are_valid_genotypes(macro: object, by_group: bool) -> None:
    space = macro.space  # type: ignore[attr-defined]
    evolution, rng = Evolution(by_group=by_group), random.Random(0)
    for _ in range(20):
        parents = [space.random(rng), space.random(rng)]
        for make in (evolution._mutate, evolution._cross):
            child = make(space, parents, rng)
            assert space.check(child) == child


def test_a_limit_that_nothing_keeps_ends_the_search() -> None:
    with pytest.raises(HeadwayError, match="within the limit"):
        Evolution(8, 2).run(mini().space, lambda g: np.zeros(len(g)), lambda _: False, seed=0)


def test_the_predictor_learns_an_additive_space() -> None:
    space, rng = mini().space, np.random.default_rng(1)
    weights = rng.normal(0, 0.02, space.width)
    genotypes = list(space.enumerate())
    random.Random(0).shuffle(genotypes)
    truth = [0.8 + float(space.encode(g) @ weights) for g in genotypes]
    model = fit_predictor(space, genotypes[:150], truth[:150], steps=60)
    said = predict(space, model, genotypes[150:])
    assert np.corrcoef(said, truth[150:])[0, 1] > 0.95


def test_a_crossover_by_blocks_takes_the_depth_that_its_blocks_tell() -> None:
    space, rng = mbv2().space, random.Random(0)
    evolution = Evolution(by_group=True)
    deep, flat = (space.random(rng, {f"d{stage}": depth for stage in range(1, 6)}) for depth in (4, 2))
    depths = set()
    for _ in range(40):
        child = evolution._cross(space, [deep, flat], rng)
        for place in (place.name for place in mbv2().places):
            mine = {name: value for name, value in child.items() if name.endswith(place) and name[0] in "kmpdw"}
            assert any(mine.items() <= parent.items() for parent in (deep, flat))
        depths.add(child["d1"])
    assert depths == {2, 3, 4}


def test_a_limit_too_tight_to_draw_within_is_searched_from_what_keeps_it() -> None:
    space = mini().space
    only = mini().extreme(False)
    found, _ = Evolution(6, 2).run(space, lambda g: np.zeros(len(g)), lambda g: g == only, seed=0, start=[only])
    assert all(genotype == only for genotype in found)
