"""Tables of costs by bits: the released keys and entries, files in both forms, and the model of an accelerator."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from headway.core.errors import BadFile, BadInput
from headway.vision.search.apq_nets import bits_of, mbv2, mini
from headway.vision.search.apq_proof import RELEASED
from headway.vision.search.bit_costs import (
    BITFUSION,
    BitShape,
    BlockCosts,
    every_shape,
    fused,
    measured,
    modelled,
    place_options,
    read_table,
)


def as_json(folder: Path, rows: dict[str, tuple[float, float]] = RELEASED) -> Path:
    path = folder / "table.dict"
    path.write_text(json.dumps({key: {"latency": a, "energy": b} for key, (a, b) in rows.items()}))
    return path


def as_csv(folder: Path) -> Path:
    names = "part,in_channels,out_channels,in_size,kernel,stride,padding,groups,weight_bits,act_bits"
    lines = [f"{names},latency_ms,energy_mj"]
    for key, row in RELEASED.items():
        shape, _, bits = key.partition("-W")
        cells = f"conv,{shape[1:-1].replace(' ', '')},{bits.replace('A', ',')}" if bits else f"{key}{',' * 9}"
        lines.append(f"{cells},{row[0]},{row[1]}")
    path = folder / "table.csv"
    path.write_text("\n".join(lines))
    return path


def test_the_space_has_the_released_tables_keys() -> None:
    keys = every_shape(mbv2())
    assert len(keys) == 6567
    assert set(RELEASED) - set(keys) == {"head", "tail"}


@pytest.mark.parametrize("form", [as_json, as_csv])
def test_a_released_table_is_read_in_seconds_and_joules(tmp_path: Path, form: object) -> None:
    table = read_table(form(tmp_path))  # type: ignore[operator]
    for key, (ms, mj) in RELEASED.items():
        if key not in ("head", "tail"):
            assert table.shapes([key]) == {"latency_s": pytest.approx(1e-3 * ms), "energy_j": pytest.approx(1e-3 * mj)}
    assert table.ends["latency_s"] == pytest.approx(1e-3 * (0.295904 + 0.081608))
    with pytest.raises(BadInput, match=r"\(24, 152, 56, 1, 1, 0, 1\)-W4A4"):
        table.shapes(["(24, 152, 56, 1, 1, 0, 1)-W4A4"])


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    headless = {key: row for key, row in RELEASED.items() if key != "head"}
    broken = tmp_path / "broken.dict"
    broken.write_text('{"head": 3}')
    for path in (as_json(tmp_path, headless), broken, tmp_path / "missing.dict"):
        with pytest.raises(BadFile):
            read_table(path)
    endless = as_csv(tmp_path)
    endless.write_text(endless.read_text().replace("0.304336", "inf"))
    with pytest.raises(BadFile, match="no numbers"):
        read_table(endless)


def test_the_model_knows_where_bits_help_and_that_six_are_eight() -> None:
    assert [fused(bits) for bits in (1, 2, 3, 4, 5, 6, 8)] == [2, 2, 4, 4, 8, 8, 8]

    def seconds(kernel: int, groups: int, w: int, a: int) -> float:
        return BITFUSION.latency(BitShape(144 if groups > 1 else 24, 144, 56, kernel, 1, groups, w, a))

    assert seconds(1, 1, 8, 8) / seconds(1, 1, 4, 4) < 1.02  # bound by memory
    assert seconds(3, 144, 8, 8) / seconds(3, 144, 4, 8) == pytest.approx(2, rel=0.05)
    assert seconds(3, 144, 6, 6) == seconds(3, 144, 8, 8)
    for key, (ms, mj) in RELEASED.items():
        if key not in ("head", "tail"):
            shape = _shape(key)
            assert 1e3 * BITFUSION.latency(shape) == pytest.approx(ms, rel=0.2)
            assert 1e3 * BITFUSION.energy(shape) == pytest.approx(mj, rel=0.35)


def _shape(key: str) -> BitShape:
    shape, _, bits = key.partition("-W")
    inside, out, size, kernel, stride, _pad, groups = map(int, shape[1:-1].split(","))
    return BitShape(inside, out, size, kernel, stride, groups, *map(int, bits.split("A")))


@pytest.mark.parametrize("tied", [True, False])
def test_a_network_costs_its_ends_and_its_blocks_and_none_is_below_the_least(tied: bool) -> None:
    macro, rng = mini(tied), random.Random(0)
    costs = BlockCosts(macro, modelled(macro))
    least = costs.least()
    for _ in range(50):
        genotype = macro.space.random(rng)
        bits = bits_of(macro, genotype)
        found = costs.of(genotype, bits)
        by_hand = dict(costs.table.ends)
        for (place, kernel, middle), each in zip(macro.blocks(genotype), bits, strict=True):
            for name, value in costs.block(place, kernel, middle, each).items():
                by_hand[name] += value
        assert found == by_hand
        assert all(found[name] >= least[name] for name in least)
    smallest = macro.extreme(False)
    assert costs.of(smallest, bits_of(macro, smallest)) == pytest.approx(least)


def test_no_block_of_kernel_seven_has_four_bits_in_its_depthwise_convolution() -> None:
    macro = mbv2()
    place = macro.places[-1]
    options = list(place_options(macro, place))
    assert not any(kernel == 7 and bits.dwa == 4 for kernel, _, bits in options)
    assert len(options) == 49 * (81 + 81 + 54)


def test_layers_are_timed_here_with_their_bits() -> None:
    macro = mini(tied=True)
    table = measured(macro, batch=1, rounds=1)
    assert set(table.latency.costs) == set(every_shape(macro)) and table.energy is None
    assert all(cost > 0 for cost in table.latency.costs.values()) and table.latency.offset > 0
    depthwise = [key for key in table.latency.costs if key.startswith("(32, 32, 8, 5")]
    assert len(depthwise) == 4 and len({table.latency.costs[key] for key in depthwise}) == 1
