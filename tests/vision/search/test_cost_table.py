"""A cost table adds up, names what it lacks, survives a file, and learns the line through whole networks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.vision.search.blocks import BlockSpec, ConvSpec, HeadSpec
from headway.vision.search.cost_table import CostTable, measure_table
from headway.vision.search.layerwise import d400

PIXEL = {
    ConvSpec(3, 32, 3, 2).key(224): 4.084,
    ConvSpec(320, 1280).key(7): 3.089,
    HeadSpec(1280, 1000).key(7): 0.310,
    BlockSpec(16, 24, 48, 3, 2).key(112): 6.241,
    BlockSpec(16, 24, 48, 5, 2).key(112): 7.519,
}


def test_the_papers_excerpt_adds_up_and_a_missing_key_is_named() -> None:
    table = CostTable(PIXEL, "ms")
    assert table.cost(PIXEL) == pytest.approx(21.243)
    missing = BlockSpec(16, 24, 48, 7, 2).key(112)
    with pytest.raises(BadInput, match="k7 s2"):
        table.cost([*PIXEL, missing])


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = CostTable(PIXEL, "ms", 1.1, 0.2, 8, 0.98, 0.03)
    table.save(tmp_path / "table.json")
    assert CostTable.load(tmp_path / "table.json") == table
    with pytest.raises(BadInput, match=r"x\.json"):
        CostTable.from_json({"costs": {"a": "much"}}, "x.json")


def test_swapping_makes_another_machine() -> None:
    one, other = list(PIXEL)[3:]
    swapped = CostTable(PIXEL, "ms").swapped({one: other})
    assert swapped.of(one) == PIXEL[other] and swapped.of(other) == PIXEL[one]


@given(st.floats(0.5, 2), st.floats(0, 5), st.integers(0, 1000))
def test_the_line_through_whole_networks_is_found(scale: float, offset: float, seed: int) -> None:
    macro, rng = d400(), random.Random(seed)
    costs = {spec.key(size): rng.uniform(1, 3) for spec, size in macro.layers_in_use()}
    nets = [macro.net(macro.space.random(rng)).keys() for _ in range(8)]
    nets += [macro.net(macro.extreme(True)).keys(), macro.net(macro.extreme(False)).keys()]
    true = CostTable(costs, scale=scale, offset=offset)
    found = CostTable(costs).fitted([(keys, true.cost(keys)) for keys in nets])
    assert found.scale == pytest.approx(scale, rel=1e-6) and found.offset == pytest.approx(offset, abs=1e-5)
    assert found.r2 == pytest.approx(1.0) and found.error == pytest.approx(0.0, abs=1e-6)


def test_every_layer_of_a_space_is_measured_and_larger_ones_cost_more() -> None:
    torch.set_num_threads(1)
    macro, rng = d400(), random.Random(0)
    nets = [macro.net(macro.space.random(rng)) for _ in range(6)]
    table = measure_table(macro.layers_in_use(), nets, batch=1, rounds=4)
    assert all(table.net(macro.net(genotype)) > 0 for genotype in macro.space.enumerate())
