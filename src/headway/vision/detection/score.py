"""COCO's mean average precision, by its own evaluator (package `pycocotools`, extra `detection`)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headway.core.errors import BadInput, need_extra
from headway.vision.detection.detections import Detections
from headway.vision.detection.targets import Objects


@dataclass(frozen=True)
class Precision:
    """Mean over classes of the area under precision against recall, from 0 to 1."""

    mean: float
    """Mean over overlaps from 0.5 to 0.95 in steps of 0.05: what papers call mAP or AP."""
    at_50: float
    at_75: float


def average_precision(found: Sequence[Detections], truth: Sequence[Objects], height: int, width: int) -> Precision:
    """How good detections of some images of this size are; classes without objects do not count.

    Raises `BadInput` where there are no objects at all, or not as many lists of the one as of the other; `Lacking`
    where `pycocotools` is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError:
        raise need_extra("pycocotools", "detection") from None
    if len(found) != len(truth):
        raise BadInput(f"detections of {len(found)} images and objects of {len(truth)}", "give both of each image")
    objects: list[dict[str, Any]] = []
    for image, given in enumerate(truth, 1):
        there = given.with_area()
        for box, label in zip(_pixels(there.boxes, height, width), there.labels.tolist(), strict=True):
            # The evaluator takes an object of number 0 for none.
            number = {"id": len(objects) + 1, "area": box[2] * box[3], "iscrowd": 0}
            objects.append({**number, "image_id": image, "category_id": label, "bbox": box})
    if not objects:
        raise BadInput("no image has an object", "score images with objects")
    said = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, seen in enumerate(found, 1)
        for box, label, score in zip(
            _pixels(seen.boxes, height, width), seen.labels.tolist(), seen.scores.tolist(), strict=True
        )
    ]
    if not said:
        return Precision(0.0, 0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        known = COCO()
        known.dataset = {
            "images": [{"id": image, "height": height, "width": width} for image in range(1, len(truth) + 1)],
            "annotations": objects,
            "categories": [{"id": label} for label in sorted({thing["category_id"] for thing in objects})],
        }
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(said), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return Precision(*(float(value) for value in evaluation.stats[:3]))


def _pixels(boxes: Tensor, height: int, width: int) -> list[list[float]]:
    """COCO's form: left, top, width, height in pixels."""
    top, left, bottom, right = (boxes.double() * boxes.new_tensor([height, width] * 2).double()).T.tolist()
    return [[le, t, r - le, b - t] for t, le, b, r in zip(top, left, bottom, right, strict=True)]
