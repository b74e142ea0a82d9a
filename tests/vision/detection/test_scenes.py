"""Scenes: always the same, with tight boxes; and a detector that learns some of them."""

from __future__ import annotations

import pytest
import torch

from headway.core.errors import BadInput
from headway.vision.detection import scenes as made
from headway.vision.detection.boxes import anchors, area, iou
from headway.vision.detection.nets import NetSpec, SSDLite, map_sizes
from headway.vision.detection.scenes import BACKGROUNDS, Scenes, letter_scenes
from headway.vision.detection.targets import targets
from headway.vision.detection.train import precision_of, train_detector
from headway.vision.lab import FACES
from headway.vision.train import Recipe

TINY = NetSpec(8, ((8, "N"), (8, "F4*"), (16, "F4*"), (16, "F4*"), (24, "I4*")))


def test_scenes_are_repeated_and_differ_by_seed_and_role() -> None:
    one = letter_scenes("train", 64, 4)
    letter_scenes.cache_clear()
    more = letter_scenes("train", 64, 5)
    assert torch.equal(one.images, more.images[:4]) and one.size == 64 and one.classes == 10
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(one.objects, more.objects, strict=False))
    assert not torch.equal(one.images, letter_scenes("train", 64, 4, seed=1).images)
    assert not set(BACKGROUNDS["train"]) & set(BACKGROUNDS["test"]) and not set(FACES["train"]) & set(FACES["test"])


def test_objects_lie_in_the_picture_and_apart() -> None:
    found = letter_scenes("test", 64, 12)
    assert float(found.images.abs().max()) <= 1.0 + 1e-6 and found.images.shape == (12, 3, 64, 64)
    assert {len(objects.labels) for objects in found.objects} <= {1, 2, 3, 4, 5}
    for objects in found.objects:
        assert len(objects.labels) and 0.0 <= float(objects.boxes.min()) <= float(objects.boxes.max()) <= 1.0
        assert float(area(objects.boxes).min()) > 0.0
        overlaps = iou(objects.boxes, objects.boxes) - torch.eye(len(objects.labels))
        assert float(overlaps.max()) <= 0.05 + 1e-6


def test_a_box_is_that_of_the_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a background of one grey, what differs from it is ink, also what is too faint to belong to a box."""
    monkeypatch.setattr(made, "random_view", lambda picture, size, random: torch.full((3, size, size), -0.5))
    for index in range(5):
        image, objects = made._scene("train", 64, made.np.random.default_rng(index))
        ink = (image + 0.5).abs().sum(0) > 1.2  # a colour differs by 2.4 at least: half of its opacity
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for top, left, bottom, right in (objects.boxes * 64).round().int().tolist():
            inside[top:bottom, left:right] = True
            part = ink[top:bottom, left:right]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
        assert ink.any() and float((ink & ~inside).sum()) <= 0.1 * float(ink.sum())


def test_a_detector_learns_scenes() -> None:
    scenes = letter_scenes("train", 48, 4)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = SSDLite(TINY, 10)
    losses = train_detector(net, scenes, Recipe(steps=20, batch=4, lr=1e-2, weight_decay=0.0, clip=10.0))
    assert not net.training and sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_a_detector_that_says_its_targets_scores_one() -> None:
    scenes = letter_scenes("train", 48, 4)
    wanted = targets(scenes.objects, anchors(map_sizes(48, 48), 48, 48), 10)
    said = wanted.codes, 40.0 * wanted.classes - 30.0
    assert precision_of(lambda images: said, scenes).mean == pytest.approx(1.0)


def test_what_a_detector_cannot_be_trained_on_is_refused() -> None:
    scenes = letter_scenes("train", 48, 4)
    with pytest.raises(BadInput, match="without mixup"):
        train_detector(SSDLite(TINY, 10), scenes, Recipe(mixup=0.2))
    with pytest.raises(BadInput, match="as many"):
        train_detector(SSDLite(TINY, 3), scenes, Recipe())
    with pytest.raises(BadInput, match="objects of each image"):
        Scenes(scenes.images, scenes.objects[:1], 10)
    with pytest.raises(BadInput, match="at least 33"):
        letter_scenes("train", 32, 1)
