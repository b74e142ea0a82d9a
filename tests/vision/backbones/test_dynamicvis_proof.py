"""The parts of the proof: scenes, random selection, the share of targets selected, the fitted growth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.vision.backbones import dynamicvis_proof as proof
from headway.vision.train import Recipe


def test_scenes_hold_one_small_target_each_and_are_always_the_same() -> None:
    pictures, places = proof.scenes(12, 64, 1)
    assert pictures.images.shape == (12, 3, 64, 64) and len(set(pictures.labels.tolist())) > 3
    assert torch.equal(pictures.images, proof.scenes(12, 64, 1)[0].images)
    assert (places[:, 2] >= 10).all() and (places[:, 2] <= 14).all() and (places[:, :2] + places[:, 2:] <= 64).all()
    shapes = proof.shapes()
    assert min((a != b).sum() for i, a in enumerate(shapes) for b in shapes[:i]) >= 8


def test_random_selection_has_the_same_count_and_finds_targets_by_chance() -> None:
    trial = proof.Trial(64, 0, 0, Recipe(), 1)
    pictures, places = proof.scenes(60, 64, 1)
    net = proof.mini(trial, proof.KEEP, chance=True).eval()
    assert sum(isinstance(part, proof.AnyTokens) for part in net.modules()) == 5
    assert proof.recall(net, pictures, places) == pytest.approx(1 / 8, abs=0.05)


def test_growth_is_fitted_over_pixels() -> None:
    assert proof.exponent({100: 1.0, 200: 4.0, 400: 16.0}) == pytest.approx(1.0)
    assert proof.exponent({100: 1.0, 200: 16.0}) == pytest.approx(2.0)


def test_a_pass_in_a_process_tells_its_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "network", lambda *_: torch.nn.Conv2d(3, 64, 1))
    found = proof.run_once("any", 64, torch.get_num_threads())
    assert found["seconds"] > 0 and found["bytes"] >= 0


def test_selection_is_not_judged_by_a_net_that_does_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "QUICK", proof.Trial(64, 8, 8, Recipe(steps=1, batch=2), 1))
    evidence = Evidence("prove", "dynamicvis", {}, 0, 1)
    target: Any = None
    proof.quality(evidence, ProofContext(target, target, quick=True))
    assert [bar.met for bar in evidence.bars] == [False] and "not judged" in evidence.bars[0].here
