"""Training on photographs: patches that fit, runs that repeat, x4 that begins from x2, and a workload with truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import headway
from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.workload import Workload
from headway.optimize.module_subject import ModuleSubject
from headway.vision.superres import training
from headway.vision.superres.network import CONFIGS, SESR
from headway.vision.superres.photos import NAMES, Pair, pairs, patches
from headway.vision.superres.planes import downscaled
from headway.vision.superres.training import Recipe, begun, gains, train, trained

FEW = Recipe(steps=4, batch=2, patch=12)


def test_no_photograph_has_two_roles() -> None:
    names = [name for role in NAMES.values() for name in role]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("scale", [2, 4])
def test_the_two_patches_of_a_pair_show_the_same(scale: int) -> None:
    small, large = patches(pairs("train", scale), scale, 40, 16, torch.Generator().manual_seed(0))
    assert small.shape == (40, 1, 16, 16) and large.shape == (40, 1, 16 * scale, 16 * scale)
    again = downscaled(large.double(), scale).clamp(0, 1)
    inner = (..., slice(3, -3), slice(3, -3))  # beyond it the kernel saw more of the picture
    assert (again[inner] - small[inner]).abs().max() < 1e-5


def test_patches_are_flipped_and_turned_in_all_eight_ways() -> None:
    pair = Pair.of(torch.arange(64.0).reshape(8, 8) / 64, 2)
    small, _ = patches([pair], 2, 60, 4, torch.Generator().manual_seed(0))
    ways = [torch.rot90(p, k) for p in (pair.small, pair.small.flip(0)) for k in range(4)]
    seen = {next(i for i, way in enumerate(ways) if torch.equal(way, s[0])) for s in small}
    assert seen == set(range(8))


def test_a_patch_larger_than_the_picture_is_refused() -> None:
    with pytest.raises(BadInput, match="smaller patch"):
        patches([Pair.of(torch.rand(8, 8), 2)], 2, 1, 5, torch.Generator())


def test_a_trained_network_is_cached_and_quadrupling_begins_from_doubling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StepCache(tmp_path)
    four = trained("m3", 4, FEW, cache=cache)
    two = trained("m3", 2, FEW, cache=cache)
    assert (cache.misses, cache.hits) == (2, 1)
    monkeypatch.setattr(training, "train", None)  # nothing is trained again
    again = trained("m3", 4, FEW, cache=cache)
    assert all(torch.equal(a, b) for a, b in zip(four.parameters(), again.parameters(), strict=True))
    start = begun("m3", 4, parent=two)
    assert torch.equal(start.blocks[1].expand.weight, two.blocks[1].expand.weight)
    with pytest.warns(UserWarning, match="without a network for x2"):
        begun("m3", 4)


def test_a_few_steps_lower_the_loss() -> None:
    net = SESR(CONFIGS["m3"])
    losses = train(net, pairs("train", 2), 2, Recipe(steps=40, batch=4, patch=16, lr=2e-3), seed=1)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]) and not net.training
    assert all(ours > 20.0 and plain > 20.0 for ours, plain in gains(net, pairs("heldout", 2), 2))
    with pytest.raises(BadInput, match="at least one step"):
        train(net, pairs("train", 2), 2, Recipe(steps=0))


def test_quality_of_a_model_is_a_ratio_of_psnr_to_the_right_picture() -> None:
    model = headway.load("sesr(variant=m3, height=24, width=30)")
    subject = ModuleSubject(model, Workload())
    assert subject.units("heldout") == 2 * len(NAMES["heldout"])
    assert subject.qualities([model], "heldout", 8, False)[0]["quality"] == 1.0
    other = headway.load("sesr(variant=m5, height=24, width=30)")
    assert 0.2 < subject.qualities([other], "search", 4, False)[0]["quality"] != 1.0
