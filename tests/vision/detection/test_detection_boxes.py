"""Boxes, anchors and codes against values computed by hand and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_boxes import random_boxes

from headway.vision.detection.boxes import anchors, area, centred, decode, encode, iou
from headway.vision.detection.nets import map_sizes


def test_intersection_over_union_of_known_boxes() -> None:
    one = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.25, 0.75]])
    other = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]])
    assert torch.allclose(iou(one, other), torch.tensor([[1 / 7, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert area(torch.tensor([0.5, 0.5, 0.2, 0.9])) == 0, "turned inside out"
    nothing = torch.zeros(1, 4)
    assert iou(nothing, nothing) == 0 and iou(nothing[:0], other).shape == (0, 3)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_overlap_is_that_of_a_loop(seed: int) -> None:
    one, other = random_boxes(3, seed), random_boxes(4, seed + 1)
    found = iou(one, other)
    for i, (t, le, b, r) in enumerate(one.tolist()):
        for j, (tt, ll, bb, rr) in enumerate(other.tolist()):
            common = max(0.0, min(b, bb) - max(t, tt)) * max(0.0, min(r, rr) - max(le, ll))
            union = (b - t) * (r - le) + (bb - tt) * (rr - ll) - common
            assert found[i, j] == pytest.approx(common / union, abs=1e-5)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_codes_go_round(seed: int) -> None:
    boxes, placed = random_boxes(50, seed), random_boxes(50, seed + 1, 0.05)
    assert float((decode(encode(boxes, placed), placed) - boxes).abs().max()) <= 1e-5


def test_a_code_by_hand() -> None:
    anchor, box = torch.tensor([0.0, 0.0, 0.5, 1.0]), torch.tensor([0.25, 0.25, 0.5, 0.75])
    assert torch.allclose(encode(box, anchor), torch.tensor([2.5, 0.0, 5 * math.log(0.5), 5 * math.log(0.5)]))
    assert torch.equal(encode(anchor, anchor), torch.zeros(4))
    assert bool(torch.isfinite(encode(torch.zeros(4), anchor)).all())


def test_anchors_of_320_pixels() -> None:
    placed = anchors(map_sizes(320, 320), 320, 320)
    assert placed.shape == (3 * 400 + 6 * (100 + 25 + 9 + 4 + 1), 4) == (2034, 4)
    centre, sides = centred(placed)
    assert torch.allclose(centre[0], torch.tensor([0.025, 0.025])) and torch.allclose(
        centre[3], torch.tensor([0.025, 0.075])
    ), "columns before rows"
    s = 0.2
    wanted = [[0.1, 0.1], [s / 2**0.5, s * 2**0.5], [s * 2**0.5, s / 2**0.5]]
    assert torch.allclose(sides[:3], torch.tensor(wanted))
    s, behind = 0.35, 0.5
    wanted = [[s / r**0.5, s * r**0.5] for r in (1, 2, 1 / 2, 3, 1 / 3)] + [[(s * behind) ** 0.5] * 2]
    assert torch.allclose(sides[1200:1206], torch.tensor(wanted))
    assert torch.allclose(centre[-6:], torch.full((6, 2), 0.5))
    assert torch.allclose(sides[-1], torch.tensor([0.95**0.5] * 2)), "between 0.95 and 1"


def test_anchors_of_other_images_are_of_the_shorter_side() -> None:
    _, sides = centred(anchors(map_sizes(64, 128), 64, 128))
    assert torch.allclose(sides[0], torch.tensor([0.1, 0.05])), "square in pixels"
