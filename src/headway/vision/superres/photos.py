"""Photographs to learn super-resolution from and to judge it on, disjoint by picture: planes of luma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from headway.core.errors import BadInput
from headway.core.module_workload import Inputs, ModuleWorkload, psnr_ratio
from headway.vision.data import photo
from headway.vision.superres.planes import cropped, downscaled, luma

Role = Literal["train", "search", "heldout"]

NAMES: dict[Role, tuple[str, ...]] = {
    "train": (
        "astronaut.png", "coffee.png", "camera.png", "brick.png", "grass.png", "ihc.png", "coins.png",
        "hubble_deep_field.jpg",
    ),
    "search": ("motorcycle_left.png", "clock_motion.png", "moon.png"),
    "heldout": ("chelsea.png", "rocket.jpg", "gravel.png", "page.png"),
}  # fmt: skip
"""Files in `skimage/data`."""


@dataclass(frozen=True)
class Pair:
    """A plane of luma and the smaller one that was made of it: float32 in [0, 1], (h, w) and (h / scale, w / scale)."""

    large: Tensor
    small: Tensor

    @classmethod
    def of(cls, plane: Tensor, scale: int) -> Pair:
        """From a plane (h, w), whose last rows and columns go where they are no multiple of the scale."""
        large = cropped(plane, scale)
        return cls(large.float(), downscaled(large.double(), scale).clamp(0.0, 1.0).float())


@lru_cache(maxsize=8)
def pairs(role: Role, scale: int) -> tuple[Pair, ...]:
    """The photographs of a role; raises `Lacking` where scikit-image is not installed."""
    planes = [luma(torch.from_numpy(photo(name).copy()).permute(2, 0, 1).double() / 255.0) for name in NAMES[role]]
    return tuple(Pair.of(plane, scale) for plane in planes)


def patches(
    pictures: Sequence[Pair], scale: int, count: int, side: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Squares drawn with replacement, each flipped half the time and turned by a multiple of 90 degrees.

    side: px of the small plane. Gives small (count, 1, side, side) and large (count, 1, scale side, scale side).
    Raises `BadInput` for a picture that is smaller.
    """

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=random))

    small, large = [], []
    for _ in range(count):
        pair = pictures[draw(len(pictures))]
        height, width = pair.small.shape
        if min(height, width) < side:
            raise BadInput(f"patches of {side} px from a picture of {height}x{width}", "choose a smaller patch")
        top, left, flip, turns = draw(height - side + 1), draw(width - side + 1), draw(2), draw(4)
        for plane, times, into in ((pair.small, 1, small), (pair.large, scale, large)):
            cut = plane[times * top : times * (top + side), times * left : times * (left + side)]
            into.append(torch.rot90(cut.flip(0) if flip else cut, turns))
    return torch.stack(small)[:, None], torch.stack(large)[:, None]


# ---- workload -------------------------------------------------------------------------------------------------------


def upscaling_workload(_model: Any, scale: int, height: int, width: int) -> ModuleWorkload:
    """Views of photographs, each upright and turned, with the right pictures; (1, 1, height, width) of luma each."""
    found = {role: _views(role, scale, height, width) for role in NAMES}
    inputs: dict[Role, list[Inputs]] = {role: [(pair.small[None, None],) for pair in found[role]] for role in NAMES}
    truth = {role: [pair.large[None, None] for pair in found[role]] for role in NAMES}
    return ModuleWorkload(inputs["train"], inputs["search"], inputs["heldout"], psnr_ratio, "PSNR ratio", truth=truth)


def _views(role: Role, scale: int, height: int, width: int) -> list[Pair]:
    """The middle of each photograph, mirrored at its borders where it is too small."""
    found = []
    for pair in pairs(role, scale):
        for turns in (0, 1):
            plane = torch.rot90(pair.large, turns)
            for axis, size in enumerate((scale * height, scale * width)):
                plane = plane.index_select(axis, _mirrored(plane.shape[axis], size))
            found.append(Pair.of(plane, scale))
    return found


def _mirrored(inside: int, size: int) -> Tensor:
    """Indices into a line and its mirror images, so that the line's middle is in the middle."""
    index = (torch.arange(size) + (inside - size) // 2) % (2 * inside)
    return torch.where(index >= inside, 2 * inside - 1 - index, index)
