"""Made-up pictures to train detectors on: rendered letters on photographs, with the boxes of their ink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headway.core.errors import BadInput
from headway.vision.data import SOURCES, Pixels, photo, random_view
from headway.vision.detection.boxes import iou
from headway.vision.detection.nets import check_size
from headway.vision.detection.targets import Objects
from headway.vision.lab import FACES, Role, drawn

SIGNED = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Pixels from -1 to 1, as MobileDet takes them."""
ALPHABET = "ACEHKMRSTX"
BACKGROUNDS: dict[Role, tuple[str, ...]] = {
    "train": (*SOURCES["calibration"], *SOURCES["search"]),
    "test": SOURCES["heldout"],
}
"""Photographs by role: no scene of a test stands on one, or has a typeface, that was trained on."""
MOST_OBJECTS = 5
SIDES = (0.25, 0.6)
"""Least and largest side of the square that a letter is drawn in, in shares of the picture's."""
APART = 0.05
"""Largest intersection over union of two objects of a picture."""
INK = 0.5
"""Opacity from which a pixel belongs to a letter's box."""
TRIES = 20


@dataclass(frozen=True)
class Scenes:
    """Pictures with their objects."""

    images: Tensor
    """(n, 3, size, size) float32 in [-1, 1]."""
    objects: Sequence[Objects]
    classes: int

    def __post_init__(self) -> None:
        if len(self.images) != len(self.objects):
            raise BadInput(
                f"{len(self.images)} images and objects of {len(self.objects)}", "give objects of each image"
            )

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def size(self) -> int:
        return int(self.images.shape[-1])


@lru_cache(maxsize=4)
def letter_scenes(role: Role, size: int, count: int, seed: int = 0) -> Scenes:
    """`count` scenes of 1 to 5 letters of ten; always the same, and the first ones of any larger count.

    Raises `Lacking` where scikit-image or the typefaces of `headway.vision.lab` are not installed.
    """
    check_size(size, size)
    made = [_scene(role, size, np.random.default_rng([seed, size, index, *role.encode()])) for index in range(count)]
    images = torch.stack([image for image, _ in made]) if made else torch.zeros(0, 3, size, size)
    return Scenes(SIGNED.of(images), [objects for _, objects in made], len(ALPHABET))


def _scene(role: Role, size: int, random: np.random.Generator) -> tuple[Tensor, Objects]:
    names = BACKGROUNDS[role]
    image = random_view(photo(names[random.integers(len(names))]), size, random)
    boxes, labels = torch.zeros(0, 4), []
    for _ in range(random.integers(1, MOST_OBJECTS + 1)):
        for _ in range(TRIES if labels else 10 * TRIES):
            label = int(random.integers(len(ALPHABET)))
            side = round(size * random.uniform(*SIDES))
            ink = drawn(ALPHABET[label], FACES[role][random.integers(len(FACES[role]))], side, random)
            rows, columns = (np.flatnonzero((ink >= INK).any(axis)) for axis in (1, 0))
            if not len(rows):
                continue
            top, left = (int(random.integers(0, size - side + 1)) for _ in range(2))
            ends = (top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1)
            box = torch.tensor([[end / size for end in ends]], dtype=torch.float32)
            if len(boxes) and float(iou(box, boxes).max()) > APART:
                continue
            _paint(image[:, top : top + side, left : left + side], torch.from_numpy(ink).float(), random)
            boxes, labels = torch.cat([boxes, box]), [*labels, label]
            break
    return image, Objects(boxes, torch.tensor(labels, dtype=torch.long))


def _paint(view: Tensor, ink: Tensor, random: np.random.Generator) -> None:
    """Paint a letter into a view, (3, side, side) in place: light on what is dark, dark on what is light."""
    colour = torch.from_numpy(random.uniform(0.3, 1.0, 3)).float()
    if float(view.mean()) > 0:
        colour = -colour
    view += ink * (colour[:, None, None] - view)
