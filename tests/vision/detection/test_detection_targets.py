"""Matching and losses against loops and values computed by hand, and images without objects."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_boxes import random_boxes
from torch import Tensor

from headway.core.errors import BadInput
from headway.vision.detection.boxes import anchors, encode, iou
from headway.vision.detection.nets import map_sizes
from headway.vision.detection.targets import Objects, Targets, detection_loss, focal, match, smooth_l1, targets

ANCHORS = anchors(map_sizes(64, 64), 64, 64)


def loop_match(boxes: Tensor, placed: Tensor) -> list[int]:
    overlap = iou(boxes, placed).tolist()
    found = []
    for anchor in range(len(placed)):
        column = [row[anchor] for row in overlap]
        best = max(range(len(column)), key=lambda i: column[i])
        found.append(best if column[best] >= 0.5 else -1)
    taken = set()
    for index, row in enumerate(overlap):
        anchor = max(range(len(row)), key=lambda i: row[i])
        if anchor not in taken:
            found[anchor] = index
        taken.add(anchor)
    return found


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_matching_is_that_of_a_loop_and_leaves_no_object_out(seed: int, count: int) -> None:
    boxes = random_boxes(count, seed)
    found = match(boxes, ANCHORS)
    assert found.tolist() == loop_match(boxes, ANCHORS)
    anchors_wanted = set(iou(boxes, ANCHORS).argmax(1).tolist())
    assert len(set(found.tolist()) - {-1}) >= len(anchors_wanted)


def test_two_objects_that_want_one_anchor_leave_it_to_the_first() -> None:
    tiny = torch.tensor([[0.1, 0.1, 0.101, 0.101], [0.1, 0.1, 0.102, 0.102]])
    anchor = torch.tensor([[0.0, 0.0, 0.25, 0.25]])
    assert match(tiny, anchor).tolist() == [0] and match(tiny.flip(0), anchor).tolist() == [0]


def test_targets_of_known_objects() -> None:
    objects = Objects(ANCHORS[[5, 40]], torch.tensor([2, 0]))
    flat = torch.tensor([[0.2, 0.2, 0.2, 0.9]])
    nothing, flat_only = Objects(flat[:0], torch.zeros(0, dtype=torch.long)), Objects(flat, torch.tensor([1]))
    wanted = targets([objects, nothing, flat_only], ANCHORS, 3)
    assert wanted.classes[0, 5].tolist() == [0, 0, 0, 1] and wanted.classes[0, 40].tolist() == [0, 1, 0, 0]
    assert torch.allclose(wanted.codes[0, [5, 40]], torch.zeros(2, 4), atol=1e-5)
    assert torch.equal(wanted.classes.sum(-1) > 0, wanted.matched)
    assert not wanted.matched[1:].any() and not wanted.classes[1:].any(), "no boxes, and a box without area"
    hit = int(torch.nonzero(wanted.matched[0])[0])
    owner = int(match(objects.boxes, ANCHORS)[hit])
    assert torch.equal(wanted.codes[0, hit], encode(objects.boxes[owner], ANCHORS[hit]))


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([0.0, 0.0, 2.0])
    p = 1 / (1 + math.exp(-2))
    expected = [0.75 * 0.25 * math.log(2), 0.25 * 0.25 * math.log(2), -0.25 * p**2 * math.log(1 - p)]
    assert torch.allclose(focal(logits, torch.tensor([1.0, 0.0, 0.0])), torch.tensor(expected))
    assert float(focal(torch.tensor(60.0), torch.tensor(1.0))) == 0.0
    extreme = torch.tensor([-200.0, 200.0], requires_grad=True)
    focal(extreme, torch.tensor([1.0, 0.0])).sum().backward()
    assert extreme.grad is not None and bool(torch.isfinite(extreme.grad).all())


def test_smooth_l1_by_hand() -> None:
    errors = torch.tensor([0.0, 0.5, 1.0, -3.0])
    assert torch.allclose(smooth_l1(errors, torch.zeros(4)), torch.tensor([0.0, 0.125, 0.5, 2.5]))


def test_losses_are_over_matches_and_finite_without_any() -> None:
    logits, codes = torch.zeros(1, 4, 3), torch.full((1, 4, 4), 2.0)
    classes = torch.zeros(1, 4, 3)
    classes[0, :2, 1] = 1.0
    wanted = Targets(classes, torch.zeros(1, 4, 4), torch.tensor([[True, True, False, False]]))
    by_class, by_box = detection_loss(codes, logits, wanted)
    assert float(by_class) == pytest.approx((2 * 0.75 + 10 * 0.25) * 0.25 * math.log(2) / 2)
    assert float(by_box) == pytest.approx(1.5), "1.5 for each value of the two matched anchors"
    empty = Targets(torch.zeros(1, 4, 3), torch.zeros(1, 4, 4), torch.zeros(1, 4, dtype=torch.bool))
    by_class, by_box = detection_loss(codes, logits, empty)
    assert float(by_class) == pytest.approx(12 * 0.25 * 0.25 * math.log(2)) and float(by_box) == 0.0


def test_bad_objects_are_refused() -> None:
    with pytest.raises(BadInput, match="do not fit"):
        Objects(torch.zeros(2, 4), torch.zeros(1, dtype=torch.long))
    with pytest.raises(BadInput, match="not finite"):
        Objects(torch.full((1, 4), torch.nan), torch.zeros(1, dtype=torch.long))
    with pytest.raises(BadInput, match="number them from 0"):
        targets([Objects(random_boxes(1, 0), torch.tensor([3]))], ANCHORS, 3)
