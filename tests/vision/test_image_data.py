"""Photographs for classifiers: the same in every run, and no scene in two splits."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from headway.core.errors import Lacking
from headway.vision.data import BATCH, BATCHES, IMAGENET, SOURCES, Views, image_workload, photo, preprocess


def test_no_picture_is_in_two_splits_and_all_exist() -> None:
    names = [name for split in SOURCES.values() for name in split]
    assert len(set(names)) == len(names)
    assert all(photo(name).ndim == 3 and photo(name).shape[2] == 3 for name in names)


def test_views_are_the_same_every_time_and_differ_among_each_other() -> None:
    once, again = Views("search", 64), Views("search", 64)
    assert len(once) == BATCHES["search"] == len(list(once))
    assert torch.equal(once[1][0], again[1][0]) and torch.equal(once[-1][0], again[len(once) - 1][0])
    assert [piece[0].shape for piece in once[:2]] == [(BATCH, 3, 64, 64)] * 2
    flat = torch.cat([piece[0] for piece in once]).flatten(1)
    assert len(torch.unique(flat, dim=0)) == len(flat)
    assert float(flat.min()) >= -1.0 and float(flat.max()) <= 1.0
    with pytest.raises(IndexError):
        once[len(once)]


def test_the_centre_is_kept_and_pixels_normalised() -> None:
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:, 5:15] = 255
    x = preprocess(picture, 10)
    assert x.shape == (3, 10, 10) and x.unique().tolist() == [1.0]
    assert preprocess(np.full((4, 4, 3), 127, np.uint8), 2).abs().max() == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    photo.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Lacking, match=r"'scikit-image' is not installed; run: pip install 'headway\[vision\]'"):
        image_workload(None, 64)


def test_pixels_can_be_normalised_as_imagenet_nets_want_them() -> None:
    plain, other = Views("search", 32)[0][0], Views("search", 32, IMAGENET)[0][0]
    values = (plain * 128.0 + 127.0) / 255.0
    for channel, (mean, std) in enumerate(zip(IMAGENET.mean, IMAGENET.std, strict=True)):
        assert torch.allclose(other[:, channel], (values[:, channel] - mean) / std, atol=1e-5)
