"""Parts of APQ's proof that need no training: exact bars, the pipeline it is compared with, its samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from known_machine import GOLDEN
from searching import subject
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.target import Target
from headway.vision.search import apq_proof
from headway.vision.search.apq import ApqSettings, JointSubject, plain_genotype
from headway.vision.search.apq_nets import mini
from headway.vision.search.bit_costs import BlockCosts, modelled
from headway.vision.search.elastic import ElasticNet


class Weighs(nn.Module):
    """A predictor that likes everything large."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.arange(x.shape[1], dtype=x.dtype)


@pytest.fixture
def about(tmp_path: Path) -> JointSubject:
    macro = mini(tied=True)
    costs = BlockCosts(macro, modelled(macro))
    return JointSubject(**subject("apq", macro, ApqSettings(), tmp_path).__dict__, costs=costs)


def test_the_exact_bars_hold_here() -> None:
    evidence = Evidence.begin("prove", "apq", Target.load(GOLDEN), 0, 1)
    apq_proof.encoding(evidence, 50)
    apq_proof.table(evidence)
    apq_proof.quantisers(evidence)
    assert len(evidence.bars) == 4 and all(bar.met for bar in evidence.bars)


def test_samples_are_spread_and_the_enumerated_part_is_whole(about: JointSubject) -> None:
    sample = apq_proof.stratified(about, 75)
    costs = [about.latency(genotype) for genotype in sample]
    assert costs == sorted(costs) and len({about.macro.space.text(g) for g in sample}) == 75
    assert sum(apq_proof.enumerable(g) for g in about.macro.space.enumerate()) == 256


def test_the_pipeline_keeps_its_limit_and_decides_in_order(about: JointSubject) -> None:
    truth = apq_proof.Truth(about, ApqSettings(), ElasticNet(mini(tied=True)))
    arch = about.architectures.macro.space
    truth.architectures = {  # type: ignore[misc]
        arch.text(g): (g, float(sum(int(v) for v in g.values()))) for g in arch.enumerate()
    }
    dear, cheap = (about.latency(about.macro.extreme(large)) for large in (True, False))
    for share in (0.02, 0.15, 0.3, 0.5, 1.0):
        limit = cheap + share * (dear - cheap)
        found = apq_proof.one_after_another(truth, Weighs(), limit)
        assert about.latency(found) <= limit
    assert found == about.macro.extreme(True)
    assert truth.plain(found) == float(sum(int(v) for v in plain_genotype(found).values()))


def test_a_search_that_is_no_better_does_not_pass(about: JointSubject) -> None:
    evidence = Evidence.begin("prove", "apq", Target.load(GOLDEN), 0, 1)
    nets = [about.macro.extreme(True)] * 3
    arms = {"joint": nets, "sequential": nets, "blind": nets}
    same = np.array([[80.0, 81.0, 82.0], [80.5, 81.5, 82.5]])
    apq_proof.against(evidence, arms, {"joint": same, "sequential": same, "blind": same})
    assert not any(bar.met for bar in evidence.bars)
    few = [about.macro.extreme(False)] * 3
    better = {"joint": same + 1, "sequential": same, "blind": same}
    apq_proof.against(evidence, {**arms, "blind": few}, better)
    assert all(bar.met for bar in evidence.bars[2:])
