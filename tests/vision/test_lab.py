"""Labelled pictures: always the same, typefaces apart, files of Fashion-MNIST read exactly."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from headway.core.errors import BadFile, BadInput, Lacking
from headway.vision import lab
from headway.vision.lab import FACES, Pictures, fashion_mnist, letters, normalised


def test_letters_are_as_many_as_the_proofs_say_and_always_the_same() -> None:
    train, test = letters("train", 12, "abz"), letters("test", 12, "abz")
    assert train.images.shape == (18 * 3 * 15, 1, 12, 12) and test.images.shape == (4 * 3 * 25, 1, 12, 12)
    assert torch.equal(train.labels.bincount(), torch.tensor([270, 270, 270])) and train.classes == 3
    first = letters("test", 12, "abz").images
    letters.cache_clear()
    assert torch.equal(letters("test", 12, "abz").images, first)
    assert not torch.equal(letters("test", 12, "abz", seed=1).images, first)


def test_no_typeface_has_two_roles() -> None:
    assert not set(FACES["train"]) & set(FACES["test"]) and len(set(FACES["train"])) == 18


def test_letters_show_ink_in_the_middle_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "NOISE", 0.0)
    monkeypatch.setattr(lab, "SHIFT", 0.0)
    plain = lab.letters.__wrapped__("test", 20, "ox")
    mean = [plain.images[plain.labels == label].mean(0)[0] for label in (0, 1)]
    assert all(float(image[4:16, 4:16].sum()) > 0.9 * float(image.sum()) > 5.0 for image in mean)
    assert float(mean[1][9:11, 9:11].mean()) > 0.4 > 0.1 > float(mean[0][9:11, 9:11].mean()), "an x has a centre"


def test_missing_typefaces_say_what_brings_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lab, "FOLDERS", (str(tmp_path),))
    monkeypatch.delenv("HEADWAY_FONTS", raising=False)
    with pytest.raises(Lacking, match="apt-get install fonts-dejavu-core fonts-dejavu-extra"):
        letters("train", 13, "a")


def write_idx(path: Path, values: np.ndarray, pack: bool = True) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.tobytes()) if pack else head + values.tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for stem, count, pack in (("train", 7, True), ("t10k", 3, False)):
        tail = ".gz" if pack else ""
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte{tail}", images, pack)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{tail}", labels, pack)
    return tmp_path


def test_fashion_mnist_is_read_exactly_packed_or_not(folder: Path) -> None:
    train, test = fashion_mnist("train", folder), fashion_mnist("test", folder)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    assert torch.equal((train.images[:, 0] * 255).round().byte(), torch.from_numpy(images))
    assert train.labels.tolist() == random.integers(0, 10, 7, dtype=np.uint8).tolist()
    assert test.images.shape == (3, 1, 28, 28) and test.classes == 10
    wide, _ = (split.shaped(40) for split in normalised(train, test))
    assert wide.images.shape == (7, 3, 40, 40) and torch.equal(wide.images[:, 0], wide.images[:, 2])


def test_a_missing_or_damaged_data_set_is_named(folder: Path) -> None:
    with pytest.raises(Lacking, match="apt-get install dataset-fashion-mnist, or give the folder"):
        fashion_mnist("train", folder / "nowhere")
    path = folder / "train-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    for bad, rule in [
        (b"no gzip", "not packed by gzip"),
        (good[:-12], "not packed by gzip"),
        (gzip.compress(b"\0\0\x09\x01\0\0\0\x07" + bytes(7)), "no IDX file of 1 axes"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x09" + bytes(7)), r"7 bytes of values for the shape \(9,\)"),
    ]:
        path.write_bytes(bad)
        with pytest.raises(BadFile, match=rule):
            fashion_mnist("train", folder)
    write_idx(path, np.zeros(5, np.uint8))
    with pytest.raises(BadInput, match="7 pictures with 5 labels"):
        fashion_mnist("train", folder)


def test_normalising_uses_the_first_split_alone() -> None:
    a, b = (Pictures(torch.randn(20, 1, 4, 4) * 3 + shift, torch.zeros(20).long(), 1) for shift in (5.0, 9.0))
    first, second = normalised(a, b)
    assert abs(float(first.images.mean())) < 1e-5 and float(first.images.std()) == pytest.approx(1.0)
    assert float(second.images.mean()) == pytest.approx(4.0 / float(a.images.std()), rel=0.2)
