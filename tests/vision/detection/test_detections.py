"""Suppression against the quadratic loop, and decoding of what a detector says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_boxes import random_boxes

from headway.core.errors import BadInput
from headway.vision.detection.boxes import anchors, encode, iou
from headway.vision.detection.detections import detect, detections, suppress
from headway.vision.detection.mobiledets_proof import quadratic
from headway.vision.detection.nets import map_sizes


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([3, 100]), st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=30)
def test_suppression_is_that_of_the_loop(seed: int, classes: int, most: int, overlap: float) -> None:
    boxes = random_boxes(30, seed, 0.3)
    scores = torch.rand(30, classes, generator=torch.Generator().manual_seed(seed))
    scores[:5] = 0.0  # under the least score
    wanted = quadratic(boxes, scores, overlap, most)
    found = suppress(boxes, scores, overlap, most=most)
    assert torch.equal(found.scores, torch.tensor([score for score, _, _ in wanted]))
    assert found.labels.tolist() == [label for _, label, _ in wanted]
    assert torch.equal(found.boxes, boxes[[box for _, _, box in wanted]])


def test_equal_boxes_of_one_class_are_one_and_of_two_classes_two() -> None:
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.4]]).repeat(3, 1)
    found = suppress(boxes, torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.9, 0.3]]))
    assert found.labels.tolist() == [0, 1] and found.scores.tolist() == pytest.approx([0.9, 0.3])
    assert len(suppress(boxes, torch.zeros(3, 2))) == 0 and len(suppress(boxes[:0], torch.zeros(0, 2))) == 0


def said(boxes: torch.Tensor, labels: list[int], size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and logits of a detector that is sure of these boxes, on the anchors that overlap them most."""
    placed = anchors(map_sizes(size, size), size, size)
    codes, logits = torch.zeros(1, len(placed), 4), torch.full((1, len(placed), 4), -30.0)
    logits[..., 0] = 30.0  # the background is never a detection
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        at = int(iou(box[None], placed).argmax())
        codes[0, at] = encode(box, placed[at])
        logits[0, at, 1 + label] = 4.0 - index
    return codes, logits


def test_what_a_detector_says_becomes_boxes_inside_the_image() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.5], [0.5, 0.6, 0.9, 1.2]])
    (found,) = detections(*said(boxes, [2, 0]), 64, 64)
    assert found.labels.tolist() == [2, 0] and found.scores.tolist() == pytest.approx([0.982, 0.9526], abs=1e-3)
    assert torch.allclose(found.boxes, boxes.clamp(0, 1), atol=1e-5)
    (nothing,) = detections(*said(torch.tensor([[1.1, 0.1, 1.3, 0.3]]), [1]), 64, 64)
    assert len(nothing) == 0, "it lies below the image"


def test_many_detections_are_cut_at_a_hundred_and_small_images_refused() -> None:
    size = 320
    placed = anchors(map_sizes(size, size), size, size)
    codes, logits = torch.zeros(1, len(placed), 4), torch.zeros(1, len(placed), 3)
    assert len(detections(codes, logits, size, size)[0]) == 100
    with pytest.raises(BadInput, match="at least 33"):
        detect(lambda x: x, torch.zeros(1, 3, 32, 32))
    assert detect(lambda x: (codes[:0], logits[:0]), torch.zeros(0, 3, size, size)) == []


def test_what_the_released_detectors_suppress_with() -> None:
    apart = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.58], [0.0, 0.0, 1.0, 0.64]])  # overlaps 0.58 and 0.64
    found = suppress(apart, torch.tensor([[0.9], [0.8], [0.7]]))
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
