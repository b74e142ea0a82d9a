"""Labelled images to search on: scikit-learn's digits on canvases, or a user's own file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headway.core.errors import BadInput, need_extra
from headway.core.files import sha256_of

CANVAS, ENLARGED = 16, 12
"""Pixels a side of a canvas, and of the digit on it."""
TRAIN_DIGITS, VALID_DIGITS = 1000, 250
"""Source digits of two splits; the other 547 are for the test."""
TRAIN_CANVASES, PLACEMENTS = 8000, 4
NOISE = 0.25
"""Standard deviation of the noise, ink being 1."""
FEWEST_RECALIBRATION = 200


@dataclass(frozen=True)
class Split:
    """Images (n, channels, size, size) float32 and labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, size: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
        """`size` random images of torch's generator, with noise of their own."""
        index = torch.randint(len(self), (size,))
        images = self.images[index]
        return (images + noise * torch.randn_like(images) if noise else images), self.labels[index]


@dataclass(frozen=True)
class Images:
    """Three splits without a source image in common. `noise` is redrawn for every training batch."""

    train: Split
    valid: Split
    test: Split
    classes: int
    noise: float = 0.0

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        return self.train.images.shape[-1]

    @cached_property
    def digest(self) -> str:
        return sha256_of(
            *(part.numpy().tobytes() for s in (self.train, self.valid, self.test) for part in (s.images, s.labels)),
            str(self.noise),
        )

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """A training batch."""
        return self.train.batch(size, self.noise)


@lru_cache(maxsize=1)
def digits() -> Images:
    """Scikit-learn's 1,797 digits, 8x8 enlarged to 12x12, at random places of 16x16 canvases with noise.

    8,000 training canvases without noise (it is redrawn), 1,000 for validation, 2,188 for the test. Raises `Lacking`.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise need_extra("scikit-learn", "nas") from None
    source = load_digits()
    pixels = torch.from_numpy(np.asarray(source.images, np.float32) / 16)[:, None]
    labels = torch.from_numpy(np.asarray(source.target, np.int64))
    large = F.interpolate(pixels, size=(ENLARGED, ENLARGED), mode="bilinear", align_corners=False)
    order = _stratified(labels, np.random.default_rng(0))
    parts = np.split(order, [TRAIN_DIGITS, TRAIN_DIGITS + VALID_DIGITS])
    random = np.random.default_rng(1)
    made = []
    for role, part in enumerate(parts):
        index = random.integers(0, len(part), TRAIN_CANVASES) if role == 0 else np.arange(len(part) * PLACEMENTS)
        chosen = torch.from_numpy(part[index % len(part)])
        canvases = torch.zeros(len(chosen), 1, CANVAS, CANVAS)
        for canvas, digit, (top, left) in zip(
            canvases, large[chosen], random.integers(0, CANVAS - ENLARGED + 1, (len(chosen), 2)), strict=True
        ):
            canvas[:, top : top + ENLARGED, left : left + ENLARGED] = digit
        if role:
            canvases += NOISE * torch.from_numpy(random.standard_normal(canvases.shape, np.float32))
        made.append(Split(canvases, labels[chosen]))
    return Images(*made, classes=10, noise=NOISE)


def _stratified(labels: Tensor, random: np.random.Generator) -> np.ndarray:
    """An order in which every stretch has about the classes' shares of the whole."""
    place = np.empty(len(labels))
    for label in np.unique(labels.numpy()):
        mine = np.flatnonzero(labels.numpy() == label)
        place[random.permutation(mine)] = (np.arange(len(mine)) + random.random()) / len(mine)
    return np.argsort(place, kind="stable")


def read_images(path: str | Path, seed: int = 0) -> Images:
    """A `.npz` file with `images` (n, c, s, s) or (n, s, s) and `labels` (n,): 70 / 15 / 15 %, stratified.

    8-bit images are divided by 255. Raises `BadInput` for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no file {str(path)!r}", "give a .npz file with arrays `images` and `labels`")
    try:
        with np.load(path, allow_pickle=False) as held:
            images, labels = np.asarray(held["images"]), np.asarray(held["labels"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BadInput(
            f"{path} is no set of images ({error})", "write np.savez(FILE, images=..., labels=...)"
        ) from None
    images = images[:, None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[2] != images.shape[3] or labels.shape != images.shape[:1]:
        raise BadInput(
            f"{path}: images {images.shape} and labels {labels.shape} do not fit",
            "images are (n, channels, size, size), labels (n,)",
        )
    kinds = np.unique(labels)
    if not np.issubdtype(labels.dtype, np.integer) or kinds[0] != 0 or kinds[-1] != len(kinds) - 1:
        raise BadInput(f"{path}: labels are not 0 .. {len(kinds) - 1}", "number the classes from 0 without gaps")
    fewest = int(np.bincount(labels).min())
    if fewest < 7:
        raise BadInput(f"{path}: a class has {fewest} images", "give at least 7 of each, so that every split has some")
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    pixels = torch.from_numpy(images.astype(np.float32) / scale)
    if not bool(torch.isfinite(pixels).all()):
        raise BadInput(f"{path}: some pixels are not finite", "clean the images")
    answers = torch.from_numpy(labels.astype(np.int64))
    order = torch.from_numpy(_stratified(answers, np.random.default_rng(seed)))
    cuts = [int(0.7 * len(order)), int(0.85 * len(order))]
    splits = [Split(pixels[part], answers[part]) for part in torch.tensor_split(order, cuts)]
    return Images(*splits, classes=len(kinds))
