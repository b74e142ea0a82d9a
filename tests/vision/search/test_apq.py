"""APQ: transfer of the predictor, what bits do to it, limits of both kinds, and a search from end to end."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from searching import Stops, images, subject

from headway.core.budget import Budget
from headway.core.errors import BadInput, HeadwayError
from headway.core.module_origin import build_family
from headway.core.progress import Progress
from headway.vision.search import apq, apq_nets
from headway.vision.search.accuracy_predictor import TransferPredictor, fit_predictor, predict
from headway.vision.search.apq import Apq, ApqSettings, JointSubject, evolve, plain_genotype, transferred
from headway.vision.search.bit_costs import BlockCosts, modelled
from headway.vision.search.images import Split
from headway.vision.search.progressive import Phase, draw, phases
from headway.vision.search.quantised_net import quantised_layers


def settings(**more: object) -> ApqSettings:
    few = {"full_steps": 3, "phase_steps": 2, "batch": 8, "bn_images": 200, "fp32_pairs": 12, "quant_pairs": 10}
    few |= {"label_epochs": 0.05, "qat_epochs": 0.1, "qat_batch": 8, "population": 8, "iterations": 3}
    few |= {"predictor_steps": 5}
    return ApqSettings.parse({**few, **more}, "apq")


def about(folder: Path, progress: Progress | None = None, *, tied: bool = True) -> JointSubject:
    macro = apq_nets.mini(tied)
    costs = BlockCosts(macro, modelled(macro))
    made = images()
    train = Split(made.train.images.repeat(3, 1, 1, 1), made.train.labels.repeat(3))
    plain = subject("apq", macro, settings(), folder, progress)
    name = "d400-tied" if tied else "d400-bits"
    fields = {**plain.__dict__, "space": name, "images": replace(made, train=train), "table": costs.table.latency}
    return JointSubject(**fields, costs=costs)


def test_a_transferred_predictor_begins_as_its_base_and_all_its_weights_learn() -> None:
    macro = apq_nets.mbv2()
    arch = apq_nets.without_bits(macro).space
    rng = random.Random(0)
    genotypes = [macro.space.random(rng) for _ in range(8)]
    plain = [plain_genotype(genotype) for genotype in genotypes]
    base = fit_predictor(arch, plain, [float(i) for i in range(8)], steps=3)
    model = TransferPredictor(base, macro.space.width - arch.width)
    assert model.added.in_features == 252 and model.base.layers[0].in_features == 520
    x = torch.from_numpy(np.stack([macro.space.encode(genotype) for genotype in genotypes]))
    x[:, 520:] = 0
    with torch.no_grad():
        assert np.array_equal(model(x).numpy(), predict(arch, base, plain))
    before = base.layers[0].weight.detach().clone()
    tuned = transferred(macro.space, base, genotypes, [float(-i) for i in range(8)], 0, 5)
    assert torch.equal(base.layers[0].weight, before)  # type: ignore[arg-type]
    assert not torch.equal(tuned.base.layers[0].weight, before)  # type: ignore[arg-type]
    again = transferred(macro.space, base, genotypes, [0.0, 1.0] * 4, 0, 1)
    assert not torch.equal(tuned.added.weight, again.added.weight)


def test_what_bits_add_comes_after_the_relu_of_the_first_layer() -> None:
    macro = apq_nets.mini()
    arch = apq_nets.without_bits(macro).space
    genotype = macro.extreme(True)
    base = fit_predictor(arch, [plain_genotype(genotype)] * 3, [0.1, 0.2, 0.3], steps=1)
    model = TransferPredictor(base, 24)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
        x = torch.from_numpy(macro.space.encode(genotype))[None]
        first, second, third, last = model.base.layers
        hidden = torch.relu(first(x[:, :15])) + x[:, 15:] @ model.added.weight.T
        by_hand = last(torch.relu(third(torch.relu(second(hidden)))))[0, 0]
        assert float(hidden.min()) < 0
        assert float(model(x)) == pytest.approx(float(by_hand * model.base.deviation + model.base.mean))


@given(st.integers(0, 2**32))
def test_genotypes_with_bits_come_back_from_text_and_encoding(seed: int) -> None:
    macro = apq_nets.mbv2()
    genotype = macro.space.random(random.Random(seed))
    assert macro.space.parse(macro.space.text(genotype)) == genotype
    assert macro.space.decode(macro.space.encode(genotype)) == genotype
    assert macro.space.told({n: v for n, v in genotype.items() if n[0] != "d" or n.startswith("dw")}) == genotype
    bits = apq_nets.bits_of(macro, genotype)
    assert len(bits) == len(macro.blocks(genotype)) == sum(int(genotype[f"d{s}"]) for s in range(1, 6)) + 1


def test_widths_are_free_only_in_the_last_phase() -> None:
    macro = apq_nets.without_bits(apq_nets.mbv2())
    rng = random.Random(0)
    made: list[Phase] = phases(macro)
    assert [phase.name for phase in made] == ["full", "kernel", "depth-1", "depth-2", "expand-1"]
    for phase in made:
        widths = {int(v) % 6 == 0 and name for _ in range(3) for name, v in draw(macro, phase, rng).items()}
        genotype = draw(macro, phase, rng)
        full = all(v == 6 * place.inside for place in macro.places if (v := genotype.get(f"m{place.name}")))
        assert full == (phase.name != "expand-1") and widths


def test_both_limits_are_kept_and_one_below_the_cheapest_is_an_error(tmp_path: Path) -> None:
    here = about(tmp_path)
    space = here.macro.space
    dear, cheap = (here.costs_of(here.macro.extreme(large)) for large in (True, False))
    half = {name: (dear[name] + cheap[name]) / 2 for name in dear}
    budget = Budget.parse(f"latency<={1e6 * half['latency_s']}us, energy<={1e6 * half['energy_j']}uJ")
    limits = here.limits(budget)
    assert limits == pytest.approx(half)
    model = fit_predictor(space, [here.macro.extreme(True), here.macro.extreme(False)] * 2, [1.0, 0.0] * 2, steps=20)
    found = evolve(here, settings(), model, limits)
    assert all(here.fits(genotype, limits) and space.check(genotype) == genotype for genotype in found)
    with pytest.raises(HeadwayError, match="cheapest"):
        here.limits(Budget.parse("energy<=1uJ"))
    no_energy = replace(here, costs=BlockCosts(here.stagewise, replace(here.costs.table, energy=None)))
    with pytest.raises(BadInput, match="no energies"):
        no_energy.limits(budget)
    tight = {"latency_s": cheap["latency_s"] * 1.001}
    assert evolve(here, settings(), model, tight)[0] == here.macro.extreme(False)


def test_a_search_whose_predictor_does_not_see_bits_takes_the_cheapest(tmp_path: Path) -> None:
    """The release's fault: every policy encoded as 8 bits."""
    here = about(tmp_path)
    space = here.macro.space
    rng = random.Random(0)
    genotypes = [space.random(rng) for _ in range(60)]

    def quality(genotype: Any) -> float:
        size = sum(int(v) for name, v in genotype.items() if name[0] in "ke")
        return 0.8 + 0.01 * size + 0.02 * sum(v == 8 for v in genotype.values())

    model = fit_predictor(space, genotypes, [quality(genotype) for genotype in genotypes], steps=60)
    dear, cheap = (here.latency(here.macro.extreme(large)) for large in (True, False))
    limits = {"latency_s": cheap + 0.4 * (dear - cheap)}
    many = settings(population=24, iterations=10)
    seeing = evolve(here, many, model, limits)[0]
    blind = evolve(here, many, model, limits, see=apq_nets.as_eight_bits)[0]
    assert sum(v == 8 for v in blind.values()) < sum(v == 8 for v in seeing.values())
    assert quality(blind) < quality(seeing)


def test_a_search_goes_on_where_it_was_stopped_and_its_network_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings()

    def search(here: JointSubject) -> Any:
        monkeypatch.setattr(apq, "joint_subject", lambda *_: here)
        return Apq().search("d400-tied", Budget.parse("latency<=1ms, quality>=0.1"), chosen, here.context)

    whole = search(about(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        search(about(tmp_path / "stopped", Stops("training networks with few bits", 4)))
    again = about(tmp_path / "stopped")
    found = search(again)
    assert found.winner == whole.winner and again.context.cache.hits >= 4
    assert set(found.winner.measured) == {"latency_s", "energy_j", "size_bytes", "quality", "accuracy"}
    assert any("accelerator" in note for note in found.notes)
    anew = build_family(found.model.origin.name)
    anew.module().load_state_dict(found.model.module().state_dict())
    x = again.images.test.images
    with torch.no_grad():
        assert torch.equal(anew.run(x), found.model.run(x))


def test_the_ends_of_the_space_are_models() -> None:
    net = build_family("apq(variant=min, channels=1, classes=7, size=32)")
    assert net.run(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert {layer.levels.bits for layer in quantised_layers(net.module())} == {4, 8}
    with pytest.raises(BadInput, match="go together"):
        build_family("apq(space=d400-tied)")
