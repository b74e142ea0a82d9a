"""COCO's mean average precision against values computed by hand: recall is sampled at 0, 0.01, ... 1."""

from __future__ import annotations

import pytest
import torch

from headway.core.errors import BadInput
from headway.vision.detection.detections import Detections
from headway.vision.detection.score import average_precision
from headway.vision.detection.targets import Objects

BOX, OTHER = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]


def there(*things: tuple[list[float], int]) -> Objects:
    boxes = torch.tensor([box for box, _ in things]).reshape(-1, 4)
    return Objects(boxes, torch.tensor([label for _, label in things], dtype=torch.long))


def seen(*things: tuple[list[float], int, float]) -> Detections:
    boxes = torch.tensor([box for box, _, _ in things]).reshape(-1, 4)
    labels, scores = ([thing[i] for thing in things] for i in (1, 2))
    return Detections(boxes, torch.tensor(labels, dtype=torch.long), torch.tensor(scores))


def test_what_is_found_exactly_scores_one() -> None:
    score = average_precision([seen((BOX, 0, 0.9), (OTHER, 3, 0.2))], [there((BOX, 0), (OTHER, 3))], 50, 100)
    assert (score.mean, score.at_50, score.at_75) == pytest.approx((1.0, 1.0, 1.0))


def test_a_shifted_box_counts_up_to_its_overlap() -> None:
    shifted = [0.1, 0.1, 0.388, 0.5]  # 0.72 of the box
    score = average_precision([seen((shifted, 0, 0.9))], [there((BOX, 0))], 100, 100)
    assert score.mean == pytest.approx(0.5), "at 0.5, 0.55, 0.6, 0.65 and 0.7 of ten"
    assert (score.at_50, score.at_75) == pytest.approx((1.0, 0.0))


def test_misses_and_false_alarms() -> None:
    truth = [there((BOX, 0)), there((OTHER, 0))]
    half = average_precision([seen((BOX, 0, 0.9)), seen()], truth, 100, 100)
    assert half.mean == pytest.approx(51 / 101), "precision 1 up to a recall of one half"
    alarm = average_precision([seen((OTHER, 0, 0.95), (BOX, 0, 0.9)), seen((OTHER, 0, 0.5))], truth, 100, 100)
    assert alarm.mean == pytest.approx(2 / 3), "precision 1/2, then 2/3, of which the larger counts for both"
    twice = average_precision([seen((BOX, 0, 0.9), (BOX, 0, 0.8)), seen((OTHER, 0, 0.5))], truth, 100, 100)
    assert twice.mean == pytest.approx((51 + 50 * 2 / 3) / 101), "the second box on one object is false"


def test_a_wrong_class_and_nothing_at_all() -> None:
    truth = [there((BOX, 0), (OTHER, 1)), there()]
    wrong = average_precision([seen((BOX, 1, 0.9), (OTHER, 1, 0.8)), seen()], truth, 100, 100)
    assert wrong.mean == pytest.approx((0.0 + 0.5) / 2)
    assert average_precision([seen(), seen()], truth, 100, 100).mean == 0.0
    flat = [0.2, 0.2, 0.2, 0.9]
    assert average_precision([seen((BOX, 0, 0.9))], [there((BOX, 0), (flat, 1))], 100, 100).mean == pytest.approx(1.0)


def test_bad_input() -> None:
    with pytest.raises(BadInput, match="score images with objects"):
        average_precision([seen()], [there()], 100, 100)
    with pytest.raises(BadInput, match="give both of each image"):
        average_precision([], [there((BOX, 0))], 100, 100)
