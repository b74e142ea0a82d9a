"""Labelled pictures for small trainings: rendered letters with typefaces split by role, and Fashion-MNIST."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headway.core.errors import BadFile, BadInput, Lacking, need_extra

Role = Literal["train", "test"]


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures of one size."""

    images: Tensor
    """(n, channels, h, w) float32."""
    labels: Tensor
    """(n,) int64."""
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, size: int, random: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Pictures drawn with replacement, and their labels."""
        index = torch.randint(len(self), (size,), generator=random)
        return self.images[index], self.labels[index]

    def first(self, count: int) -> Pictures:
        return Pictures(self.images[:count], self.labels[:count], self.classes)

    def shaped(self, size: int, channels: int = 3) -> Pictures:
        """Resized to squares, with so many equal channels."""
        images = torch.nn.functional.interpolate(self.images, (size, size), mode="bilinear", antialias=True)
        return Pictures(images.expand(-1, channels, -1, -1).contiguous(), self.labels, self.classes)


# ---- letters --------------------------------------------------------------------------------------------------------

FOLDERS = ("/usr/share/fonts/truetype/dejavu", "/usr/share/fonts/dejavu", "/usr/share/fonts/TTF", "~/.fonts")
FACES: dict[Role, tuple[str, ...]] = {
    "train": (
        "DejaVuMathTeXGyre", "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
        "DejaVuSansCondensed", "DejaVuSansCondensed-Bold", "DejaVuSansCondensed-BoldOblique",
        "DejaVuSansCondensed-Oblique", "DejaVuSansMono", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique",
        "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerifCondensed",
        "DejaVuSerifCondensed-BoldItalic", "DejaVuSerifCondensed-Italic",
    ),
    "test": ("DejaVuSerif-Italic", "DejaVuSansMono-Bold", "DejaVuSerifCondensed-Bold", "DejaVuSans-ExtraLight"),
}  # fmt: skip
"""Typefaces by role: those of a test are never seen in training."""
EACH: dict[Role, int] = {"train": 15, "test": 25}
"""Pictures of each letter in each typeface: 7,020 and 2,600 of 26 letters."""
TURN, SHEAR, NOISE = 15.0, 0.2, 0.2
"""Largest rotation in degrees, largest shear, deviation of the noise on pixels in [0, 1]."""
SHIFT = 0.1
"""Largest shift in each direction, as a share of the side: centred letters are too easy to tell small nets apart."""


@lru_cache(maxsize=8)
def letters(role: Role, size: int, alphabet: str = ascii_lowercase, seed: int = 0) -> Pictures:
    """Rendered letters, (n, 1, size, size), each turned, sheared, shifted and with noise; always the same.

    `HEADWAY_FONTS` names a folder of DejaVu's files where they are in none of the usual ones. Raises `Lacking` where
    they, or Pillow, are not there.
    """
    random = np.random.default_rng([seed, size, *role.encode()])
    drawn, labels = [], []
    for face in FACES[role]:
        font = _font(face, size)
        for label, letter in enumerate(alphabet):
            plate = _plate(letter, font, size)
            for _ in range(EACH[role]):
                drawn.append(_turned(plate, size, random))
                labels.append(label)
    images = np.stack(drawn) + random.normal(0.0, NOISE, (len(drawn), size, size))
    return Pictures(torch.from_numpy(images.astype(np.float32))[:, None], torch.tensor(labels), len(alphabet))


def drawn(letter: str, face: str, size: int, random: np.random.Generator) -> Any:
    """The ink of one letter in a typeface, turned, sheared and shifted: (size, size) float64 in [0, 1]."""
    return _turned(_plate(letter, _font(face, size), size), size, random)


def _plate(letter: str, font: Any, size: int) -> Any:
    """The letter centred on a square of twice the size."""
    image, draw = _pillow()
    plate = image.new("L", (2 * size, 2 * size))
    left, top, right, bottom = font.getbbox(letter)
    draw.Draw(plate).text((size - (left + right) / 2, size - (top + bottom) / 2), letter, fill=255, font=font)
    return plate


def _turned(plate: Any, size: int, random: np.random.Generator) -> Any:
    """A rotated, sheared and shifted view of a plate, halved: (size, size) in [0, 1]."""
    image, _ = _pillow()
    angle, shear = np.deg2rad(random.uniform(-TURN, TURN)), random.uniform(-SHEAR, SHEAR)
    cosine, sine = np.cos(angle), np.sin(angle)
    a, b, c, d = cosine, shear * cosine - sine, sine, shear * sine + cosine
    right, down = random.uniform(-SHIFT, SHIFT, 2) * 2 * size
    matrix = (a, b, size - (a + b) * size + right, c, d, size - (c + d) * size + down)
    view = plate.transform(plate.size, image.Transform.AFFINE, matrix, image.Resampling.BILINEAR)
    return np.asarray(view.reduce(2), np.float64) / 255.0


@lru_cache(maxsize=512)
def _font(face: str, size: int) -> Any:
    try:
        from PIL import ImageFont
    except ModuleNotFoundError:
        raise need_extra("pillow", "vision") from None
    own = os.environ.get("HEADWAY_FONTS")
    for folder in (own, *FOLDERS) if own else FOLDERS:
        path = Path(folder).expanduser() / f"{face}.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), round(1.5 * size))
    raise Lacking(
        f"the typeface {face} is not installed",
        "run: apt-get install fonts-dejavu-core fonts-dejavu-extra, or set HEADWAY_FONTS to a folder of DejaVu's files",
    )


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError:
        raise need_extra("pillow", "vision") from None
    return Image, ImageDraw


# ---- Fashion-MNIST --------------------------------------------------------------------------------------------------

FASHION = "/usr/share/datasets/fashion-mnist"
FASHION_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_STEMS: dict[Role, str] = {"train": "train", "test": "t10k"}
_MOST = 1 << 28
"""Bytes that a file may have when unpacked."""


def fashion_mnist(role: Role, folder: str | Path = FASHION) -> Pictures:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 pictures to train on, 10,000 to test, (n, 1, 28, 28) in [0, 1].

    Raises `Lacking` where the folder holds none of it, `BadFile` for a file that is not as it should be.
    """
    images = _idx(Path(folder), f"{_STEMS[role]}-images-idx3-ubyte", 3)
    labels = _idx(Path(folder), f"{_STEMS[role]}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or not len(labels) or int(labels.max()) >= len(FASHION_CLASSES):
        raise BadInput(
            f"{folder}: {len(images)} pictures with {len(labels)} labels do not fit", "fetch the data set again"
        )
    pixels = torch.from_numpy(images.astype(np.float32) / 255.0)[:, None]
    return Pictures(pixels, torch.from_numpy(labels.astype(np.int64)), len(FASHION_CLASSES))


def _idx(folder: Path, name: str, axes: int) -> Any:
    """The uint8 array of an IDX file, packed by gzip or not."""
    path = next((folder / f for f in (f"{name}.gz", name) if (folder / f).is_file()), None)
    if path is None:
        raise Lacking(
            f"{folder} holds no {name}.gz",
            "run: apt-get install dataset-fashion-mnist, or give the folder of its files",
        )
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(_MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadFile(path, 0, f"not packed by gzip ({error})") from None
    head = 4 + 4 * axes
    if data[:4] != bytes([0, 0, 8, axes]) or len(data) < head:
        raise BadFile(path, 0, f"no IDX file of {axes} axes of bytes")
    shape = [int(value) for value in np.frombuffer(data, ">u4", axes, 4)]
    if len(data) - head != int(np.prod(shape, dtype=object)):
        raise BadFile(path, head, f"{len(data) - head} bytes of values for the shape {tuple(shape)}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def normalised(*splits: Pictures) -> Sequence[Pictures]:
    """The splits less the first one's mean pixel, over its deviation."""
    mean, deviation = splits[0].images.mean(), splits[0].images.std()
    return [Pictures((split.images - mean) / deviation, split.labels, split.classes) for split in splits]
