"""Photographs for classifiers: random views of the pictures in scikit-image's wheel, disjoint by source picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headway.core.errors import need_extra
from headway.core.model import Task
from headway.core.module_workload import Inputs, ModuleWorkload, agreement_for

Picture = npt.NDArray[np.uint8]
"""(height, width, 3) RGB."""

SOURCES: dict[str, tuple[str, ...]] = {
    "calibration": ("astronaut.png", "retina.jpg", "coins.png", "color.png", "ihc.png", "hubble_deep_field.jpg"),
    "search": ("coffee.png", "clock_motion.png", "brick.png"),
    "heldout": ("chelsea.png", "camera.png", "motorcycle_left.png", "rocket.jpg"),
}
"""Files in `skimage/data`, by split: no two splits show the same scene. What is scored shows things ImageNet has
classes for: on a texture the original itself is undecided, and agreement with it would count tossed coins."""
BATCHES = {"calibration": 8, "search": 6, "heldout": 20}
BATCH = 8
"""Views in one piece of a split."""

MEAN, STD = 127.0, 128.0
"""Pixels are normalised as (value - MEAN) / STD, as the Lite family was trained."""


@dataclass(frozen=True)
class Pixels:
    """What a network expects of RGB pixels: (value / 255 - mean) / std."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def of(self, views: Tensor) -> Tensor:
        """Views that are normalised as above: (n, 3, h, w) -> the same shape."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((views * STD + MEAN) / 255.0 - mean) / std


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@lru_cache(maxsize=16)
def photo(name: str) -> Picture:
    """A picture of scikit-image's wheel by file name; raises `Lacking` naming the extra when it is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise need_extra("scikit-image", "vision")
    image = _pillow().open(Path(next(iter(spec.submodule_search_locations)), "data", name))
    return np.asarray(image.convert("RGB"))


def preprocess(picture: Picture, size: int) -> Tensor:
    """The largest centred square, resized: (h, w, 3) uint8 -> (3, size, size) float32, normalised."""
    height, width, _ = picture.shape
    side = min(height, width)
    return _view(picture, (height - side) // 2, (width - side) // 2, side, size)


def random_view(picture: Picture, size: int, random: np.random.Generator) -> Tensor:
    """A random square of 50% to 100% of the shorter side, mirrored half the time, with some change of light."""
    height, width, _ = picture.shape
    side = int(min(height, width) * random.uniform(0.5, 1.0))
    top, left = int(random.integers(0, height - side + 1)), int(random.integers(0, width - side + 1))
    view = _view(picture, top, left, side, size) * random.uniform(0.8, 1.2) + random.uniform(-0.1, 0.1)
    view = view.clamp(-MEAN / STD, (255.0 - MEAN) / STD)
    return view.flip(-1) if random.random() < 0.5 else view


class Views(Sequence[Inputs]):
    """The pieces of a split, ((BATCH, 3, size, size),) each; made when first asked for, and always the same."""

    def __init__(self, split: str, size: int, pixels: Pixels | None = None) -> None:
        """pixels: how a network wants them, if not as the Lite family does."""
        self.split = split
        self.size = size
        self.pixels = pixels
        self._made: dict[int, Inputs] = {}

    def __len__(self) -> int:
        return BATCHES[self.split]

    @overload
    def __getitem__(self, index: int) -> Inputs: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Inputs, ...]: ...
    def __getitem__(self, index: int | slice) -> Inputs | tuple[Inputs, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        piece = range(len(self))[index]
        if piece not in self._made:
            self._made[piece] = self._make(piece)
        return self._made[piece]

    def _make(self, piece: int) -> Inputs:
        random = np.random.default_rng([piece, self.size, *self.split.encode()])
        names = SOURCES[self.split]
        pictures = [photo(names[(piece * BATCH + i) % len(names)]) for i in range(BATCH)]
        views = torch.stack([random_view(picture, self.size, random) for picture in pictures])
        return (views if self.pixels is None else self.pixels.of(views),)


def image_workload(
    _model: Any, size: int, pixels: Pixels | None = None, task: Task = "classification"
) -> ModuleWorkload:
    """Views of photographs; a candidate is judged as its task is: right where it chooses the original's class."""
    agreement, metric = agreement_for(task)
    calibration, search, heldout = (Views(split, size, pixels) for split in SOURCES)
    photo(SOURCES["heldout"][0])  # so that a missing package is met here
    return ModuleWorkload(calibration, search, heldout, agreement, metric)


def pattern(size: int) -> Tensor:
    """A smooth made-up picture, (1, 3, size, size): for shapes and timings, where no photograph is at hand."""
    line = torch.linspace(0.0, 6.0, size)
    waves = [torch.sin(line[:, None] * (1 + channel) + line[None, :]) for channel in range(3)]
    return torch.stack(waves)[None] * 0.9


def _view(picture: Picture, top: int, left: int, side: int, size: int) -> Tensor:
    pillow = _pillow()
    cut = pillow.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side]))
    pixels = np.asarray(cut.resize((size, size), pillow.Resampling.BICUBIC), np.float32)
    return torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1).contiguous()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise need_extra("pillow", "vision") from None
    return Image
