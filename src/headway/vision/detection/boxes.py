"""Boxes, the anchors that detectors place on their maps, and the code of a box relative to an anchor.

A box is (top, left, bottom, right) in shares of the image's height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SCALES = (0.2, 0.95)
"""Sides of anchors on the first and the last map, in shares of the image's shorter side."""
RATIOS = (1.0, 2.0, 0.5, 3.0, 1.0 / 3.0)
"""Width over height; one more square lies between this map's scale and the next one's."""
FIRST_SCALE = 0.1
"""Side of the square on the first map, which has only it and the ratios 2 and 1/2."""
CODE_SCALES = (10.0, 10.0, 5.0, 5.0)
"""What codes are multiplied by: centres, then logarithms of sides."""


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...): 0 for a box that is turned inside out."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of every pair: (m, 4), (n, 4) -> (m, n); 0 where both have no area."""
    corner = torch.maximum(one[:, None, :2], other[None, :, :2])
    opposite = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    common = (opposite - corner).clamp(min=0).prod(-1)
    union = area(one)[:, None] + area(other)[None] - common
    return torch.where(union > 0, common / union, torch.zeros_like(union))


def centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) -> centres (..., 2) and sides (..., 2)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Codes (..., 4) of boxes relative to anchors: the centre's offset in anchors' sides, the logarithm of the sides.

    Sides under 1e-8 count as 1e-8.
    """
    (centre, sides), (middle, spans) = centred(boxes), centred(anchors)
    sides, spans = sides.clamp(min=1e-8), spans.clamp(min=1e-8)
    code = torch.cat([(centre - middle) / spans, torch.log(sides / spans)], -1)
    return code * code.new_tensor(CODE_SCALES)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """The boxes (..., 4) of codes: the inverse of `encode`."""
    middle, spans = centred(anchors)
    code = codes / codes.new_tensor(CODE_SCALES)
    centre, sides = middle + code[..., :2] * spans, spans * torch.exp(code[..., 2:])
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)


def anchors(sizes: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
    """The anchors of an image on maps of these (height, width), finest first: (anchors, 4) float32.

    They run over maps, rows, columns and boxes. On an image that is not square a scale is of the shorter side.
    """
    least, most = SCALES
    scales = [least + (most - least) * index / max(1, len(sizes) - 1) for index in range(len(sizes))] + [1.0]
    shorter = min(height, width)
    found = []
    for index, (rows, columns) in enumerate(sizes):
        scale = scales[index]
        shapes = (
            [(FIRST_SCALE, 1.0), (scale, 2.0), (scale, 0.5)]
            if index == 0
            else [*((scale, ratio) for ratio in RATIOS), ((scale * scales[index + 1]) ** 0.5, 1.0)]
        )
        sides = torch.tensor(
            [[s / r**0.5 * shorter / height, s * r**0.5 * shorter / width] for s, r in shapes], dtype=torch.float64
        )
        rows_at = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
        columns_at = (torch.arange(columns, dtype=torch.float64) + 0.5) / columns
        grid = torch.cartesian_prod(rows_at, columns_at).reshape(-1, 1, 2)
        found.append(torch.cat([grid - sides / 2, grid + sides / 2], -1).reshape(-1, 4))
    return torch.cat(found).float()
