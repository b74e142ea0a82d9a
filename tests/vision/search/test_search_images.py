"""Images to search on: digits whose splits share no source, and a user's file that is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.vision.search.images import Images, Split, digits, read_images
from headway.vision.search.layerwise import d400
from headway.vision.search.train import TrainRecipe, trained


def test_digits_are_as_the_card_says() -> None:
    made = digits()
    assert [len(s) for s in (made.train, made.valid, made.test)] == [8000, 1000, 2188]
    assert (made.channels, made.size, made.classes) == (1, 16, 10)
    assert made.valid.labels.bincount().tolist() == [100] * 10
    torch.manual_seed(0)
    one, two = made.batch(4)[0], made.batch(4)[0]
    assert not torch.equal(one, two) and float(one.std()) > 0.25


def test_a_users_file_becomes_three_stratified_splits(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", images=np.full((60, 8, 8), 255, np.uint8), labels=labels)
    made = read_images(tmp_path / "mine.npz")
    assert (made.classes, made.channels, made.size, float(made.train.images.max())) == (3, 1, 8, 1.0)
    assert all(set(s.labels.tolist()) == {0, 1, 2} for s in (made.train, made.valid, made.test))
    assert sum(len(s) for s in (made.train, made.valid, made.test)) == 60


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((9, 4, 4)), "labels": np.zeros(8, int)}, "do not fit"),
        ({"images": np.zeros((9, 4, 5)), "labels": np.zeros(9, int)}, "do not fit"),
        ({"images": np.zeros((20, 4, 4)), "labels": np.arange(20) % 2 + 1}, "without gaps"),
        ({"images": np.zeros((9, 4, 4)), "labels": np.arange(9) % 2}, "has 4 images"),
        ({"images": np.full((20, 4, 4), np.nan), "labels": np.arange(20) % 2}, "not finite"),
        ({"pictures": np.zeros((20, 4, 4)), "labels": np.arange(20) % 2}, "images"),
    ],
)
def test_a_bad_file_is_refused_naming_the_rule(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadInput, match=said):
        read_images(tmp_path / "bad.npz")


def tiny() -> Images:
    generator = torch.Generator().manual_seed(0)
    splits = [Split(torch.randn(n, 1, 16, 16, generator=generator), torch.arange(n) % 10) for n in (40, 30, 30)]
    return Images(*splits, classes=10)


def test_a_training_is_done_once_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    cache, macro, recipe = StepCache(tmp_path), d400(), TrainRecipe(steps=3, batch=8)
    spec = macro.net(macro.extreme(False))
    first = trained(spec, tiny(), recipe, 0, cache)
    again = trained(spec, tiny(), recipe, 0, cache)
    assert (cache.misses, cache.hits) == (1, 1)
    assert (first.valid, first.test) == (again.valid, again.test)
    x = tiny().test.images
    with torch.no_grad():
        assert torch.equal(first.module(x), again.module(x))
    assert (
        trained(spec, tiny(), recipe, 1, cache)
        .module.state_dict()["stem.conv.weight"]
        .ne(first.module.state_dict()["stem.conv.weight"])
        .any()
    )
