"""Once-for-All: phases as the paper's table, training that goes on after Ctrl-C, specialisation without training."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from searching import Stops, images, subject

from headway.core.budget import Budget
from headway.core.module_origin import build_family
from headway.core.progress import Progress
from headway.vision.search.family import Subject
from headway.vision.search.images import Images, Split
from headway.vision.search.ofa import OfaSettings, evolve, predictor
from headway.vision.search.ofa_nets import mbv3, mini
from headway.vision.search.progressive import draw, phases, specialised, trained_supernet


def settings(**more: object) -> OfaSettings:
    few = {"full_steps": 4, "phase_steps": 3, "batch": 8, "bn_images": 200, "predictor_samples": 10}
    return OfaSettings.parse({**few, "population": 8, "iterations": 3, **more}, "ofa")


def many() -> Images:
    made = images()
    train = Split(made.train.images.repeat(3, 1, 1, 1), made.train.labels.repeat(3))
    return replace(made, train=train)


def about(folder: Path, progress: Progress | None = None) -> Subject:
    return replace(subject("ofa", mini(), settings(), folder, progress), images=many())


def test_phases_are_the_papers() -> None:
    table = [(p.name, p.depths, p.kernels, p.expands, p.draws) for p in phases(mbv3())]
    every = (3, 5, 7)
    assert table == [
        ("full", 1, (7,), (6,), 1),
        ("kernel", 1, every, (6,), 1),
        ("depth-1", 2, every, (6,), 2),
        ("depth-2", 3, every, (6,), 2),
        ("expand-1", 3, every, (6, 4), 4),
        ("expand-2", 3, every, (6, 4, 3), 4),
    ]
    assert [p.sort for p in phases(mbv3())][-2:] == [(6,), (6, 4)]


def test_sub_networks_are_drawn_from_their_phase() -> None:
    macro, rng = mbv3(), random.Random(0)
    for phase in phases(macro):
        for _ in range(5):
            genotype = draw(macro, phase, rng)
            kinds = {kind: {v for name, v in genotype.items() if name[0] == kind} for kind in "dke"}
            assert kinds["k"] <= set(phase.kernels) and kinds["e"] <= set(phase.expands)
            assert min(kinds["d"]) >= 5 - phase.depths


def test_a_supernet_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = trained_supernet(about(tmp_path / "whole"), settings()).state_dict()
    with pytest.raises(KeyboardInterrupt):
        trained_supernet(about(tmp_path / "stopped", Stops("supernet, expand-1", 2)), settings())
    again = trained_supernet(about(tmp_path / "stopped"), settings()).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_another_budget_needs_no_training(tmp_path: Path) -> None:
    here = about(tmp_path)
    net = trained_supernet(here, settings())
    model = predictor(here, settings(), net)
    trainings = here.context.cache.misses
    macro = here.macro
    cheap, dear = (here.latency(macro.extreme(largest)) for largest in (False, True))
    for limit in (cheap * 1.01, (cheap + dear) / 2, None):
        found, _ = evolve(here, settings(), model, limit)
        assert all(limit is None or here.latency(genotype) <= limit for genotype in found)
    assert here.context.cache.misses == trainings
    done = here.finish(found, Budget(), {}, module_of=lambda g: specialised(here, settings(), net, g))
    genotype = macro.space.parse(done.winner.settings["genotype"])
    x = here.images.test.images
    with torch.no_grad():
        assert torch.allclose(done.model.run(x), specialised(here, settings(), net, genotype)(x), atol=1e-5)
    assert set(done.winner.measured) == {"latency_s", "size_bytes", "quality", "accuracy"}


def test_the_released_nets_are_models() -> None:
    net = build_family("ofa(variant=min, channels=1, classes=7, size=32)")
    assert net.run(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
