"""What a detector should say of an image, and how far it is from that: matching, focal and smooth-L1 losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headway.core.errors import BadInput
from headway.vision.detection.boxes import area, encode, iou

MATCHED = 0.5
"""Least intersection over union of an anchor with the object that it stands for."""
ALPHA, GAMMA = 0.75, 2.0
"""Weight of what is there against what is not, and exponent, of the focal loss."""
DELTA = 1.0
"""Error up to which smooth-L1 is quadratic."""


@dataclass(frozen=True)
class Objects:
    """The objects of one image."""

    boxes: Tensor
    """(objects, 4) float32; see `boxes`."""
    labels: Tensor
    """(objects,) int64, from 0."""

    def __post_init__(self) -> None:
        """Raises `BadInput` where boxes and labels do not fit, or a corner is not finite."""
        if self.boxes.shape != (len(self.labels), 4) or self.labels.dim() != 1:
            raise BadInput(
                f"boxes {tuple(self.boxes.shape)} and labels {tuple(self.labels.shape)} do not fit",
                "boxes are (objects, 4), labels (objects,)",
            )
        if not bool(torch.isfinite(self.boxes).all()):
            raise BadInput("a corner of a box is not finite", "clean the boxes")

    def with_area(self) -> Objects:
        """Without boxes of no height or no width, which nothing can be matched with."""
        kept = area(self.boxes) > 0
        return Objects(self.boxes[kept], self.labels[kept])


def match(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The object that each anchor stands for, (anchors,) int64; -1: none.

    It is the one that it overlaps most, from `MATCHED` on; and the anchor that overlaps an object most stands for it
    in any case (for the first of several objects that have the same one).
    """
    if not len(boxes):
        return anchors.new_full((len(anchors),), -1, dtype=torch.long)
    overlap = iou(boxes, anchors)
    most, which = overlap.max(0)
    which = torch.where(most >= MATCHED, which, -1)
    owner = torch.full_like(which, len(boxes)).scatter_reduce(0, overlap.argmax(1), torch.arange(len(boxes)), "amin")
    return torch.where(owner < len(boxes), owner, which)


@dataclass(frozen=True)
class Targets:
    """Of a batch of images."""

    classes: Tensor
    """(n, anchors, 1 + classes): 1 for the object's class; all 0, the background's too, where there is none."""
    codes: Tensor
    """(n, anchors, 4): the object's box; 0 where there is none."""
    matched: Tensor
    """(n, anchors) bool."""


def targets(objects: Sequence[Objects], anchors: Tensor, classes: int) -> Targets:
    """Raises `BadInput` for a label that is no class."""
    shape = (len(objects), len(anchors))
    wanted = Targets(torch.zeros(*shape, 1 + classes), torch.zeros(*shape, 4), torch.zeros(*shape, dtype=torch.bool))
    for index, given in enumerate(objects):
        there = given.with_area()
        if len(there.labels) and not 0 <= int(there.labels.min()) <= int(there.labels.max()) < classes:
            raise BadInput(f"labels {sorted(set(there.labels.tolist()))} of {classes} classes", "number them from 0")
        which = match(there.boxes, anchors)
        hit = which >= 0
        wanted.matched[index] = hit
        wanted.classes[index, hit, 1 + there.labels[which[hit]]] = 1.0
        wanted.codes[index, hit] = encode(there.boxes[which[hit]], anchors[hit])
    return wanted


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sigmoid focal loss of each logit (Lin et al. 2017): -weight (1 - p)^2 log p, p the probability of what is so."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = torch.sigmoid(logits) * wanted + torch.sigmoid(-logits) * (1 - wanted)
    weight = ALPHA * wanted + (1 - ALPHA) * (1 - wanted)
    return weight * (1 - right) ** GAMMA * entropy


def smooth_l1(codes: Tensor, wanted: Tensor) -> Tensor:
    """Of each value: half the square of an error up to `DELTA`, linear beyond."""
    return F.huber_loss(codes, wanted, reduction="none", delta=DELTA)


def detection_loss(codes: Tensor, logits: Tensor, wanted: Targets) -> tuple[Tensor, Tensor]:
    """Losses of classes and of boxes, each over the number of matched anchors of the batch (at least 1).

    That of boxes is a mean over the values of a code.
    """
    matches = wanted.matched.sum().clamp(min=1)
    classes = focal(logits, wanted.classes).sum() / matches
    boxes = (smooth_l1(codes, wanted.codes).mean(-1) * wanted.matched).sum() / matches
    return classes, boxes
