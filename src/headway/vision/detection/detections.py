"""From a detector's codes and logits to boxes with classes: decoding and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headway.vision.detection.boxes import anchors, decode, iou
from headway.vision.detection.nets import check_size, map_sizes

OVERLAP = 0.6
"""Intersection over union with a better box of the same class, beyond which a box is dropped."""
LEAST_SCORE = 1e-8
MOST = 100
"""Detections of one class, and of one image."""


@dataclass(frozen=True)
class Detections:
    """Of one image, the surest first."""

    boxes: Tensor
    """(detections, 4) float32, inside the image."""
    labels: Tensor
    """(detections,) int64."""
    scores: Tensor
    """(detections,) float32, probabilities."""

    def __len__(self) -> int:
        return len(self.labels)


def suppress(
    boxes: Tensor, scores: Tensor, overlap: float = OVERLAP, least_score: float = LEAST_SCORE, most: int = MOST
) -> Detections:
    """Greedy non-maximum suppression, all classes at once: boxes (n, 4), scores (n, classes).

    Per class the surest box is kept and those that overlap it by more than `overlap` are dropped, until none is left;
    of several equally sure ones the first. Then the `most` surest of all classes stay.
    """
    overlaps = iou(boxes, boxes)
    left = torch.where(scores > least_score, scores, -1.0).T.clone()  # (classes, n)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    rows = torch.arange(len(left))
    for _ in range(min(most, len(boxes))):
        sure, which = left.max(1)
        some = sure > 0
        if not bool(some.any()):
            break
        kept.append((which[some], rows[some], sure[some]))
        left[overlaps[which] > overlap] = -1.0
        left[rows, which] = -1.0
    if not kept:
        return Detections(boxes[:0], torch.zeros(0, dtype=torch.long), scores.new_zeros(0))
    which, labels, sure = (torch.cat(parts) for parts in zip(*kept, strict=True))
    order = torch.argsort(sure, descending=True, stable=True)[:most]
    return Detections(boxes[which[order]], labels[order], sure[order])


def detections(codes: Tensor, logits: Tensor, height: int, width: int) -> list[Detections]:
    """Of each image of a batch of this size: codes (n, anchors, 4), logits (n, anchors, 1 + classes).

    Boxes are cut at the image's border; those that lie outside are dropped.
    """
    placed = anchors(map_sizes(height, width), height, width)
    boxes = decode(codes, placed)
    inside = boxes.clamp(0.0, 1.0)
    scores = torch.sigmoid(logits[..., 1:])
    found = []
    for box, score in zip(inside, scores, strict=True):
        there = ((box[:, 2:] - box[:, :2]) > 0).all(-1)
        found.append(suppress(box[there], score[there]))
    return found


@torch.no_grad()
def detect(network: Callable[[Tensor], Any], images: Tensor, batch: int = 16) -> list[Detections]:
    """What a detector in `eval`, or a MODEL of one, finds in images (n, 3, h, w) in [-1, 1]."""
    height, width = (int(side) for side in images.shape[2:])
    check_size(height, width)
    found = []
    for part in images.split(batch):
        found += detections(*network(part), height, width)
    return found
