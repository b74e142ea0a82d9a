"""Pictures as planes: BT.601 luma and chroma, MATLAB's bicubic resizing, and the PSNR of luma.

All in float64 or float32, values in [0, 1], the last two axes (height, width).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from headway.core.errors import BadInput

SHARPNESS = -0.5
"""`a` of the cubic kernel; MATLAB's `imresize`."""

_TO_YCC = torch.tensor(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
)
_OFFSET = torch.tensor([16.0, 128.0, 128.0], dtype=torch.float64)


def ycc(rgb: Tensor) -> Tensor:
    """(3, h, w) RGB -> (3, h, w) of Y, Cb, Cr: ITU-R BT.601, limited range, over 255."""
    offset = _OFFSET.to(rgb.dtype)[:, None, None]
    return (torch.einsum("oc,chw->ohw", _TO_YCC.to(rgb.dtype), rgb) + offset) / 255.0


def rgb_of(planes: Tensor) -> Tensor:
    """The inverse of `ycc`; not clipped."""
    back = torch.linalg.inv(_TO_YCC).to(planes.dtype)
    return torch.einsum("oc,chw->ohw", back, 255.0 * planes - _OFFSET.to(planes.dtype)[:, None, None])


def luma(rgb: Tensor) -> Tensor:
    """(3, h, w) RGB -> (h, w) of Y in [16/255, 235/255]."""
    return ycc(rgb)[0]


def resize(planes: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) -> (..., height, width), bicubic as MATLAB's `imresize`: a wider kernel where the picture shrinks.

    Not clipped.
    """
    for axis, size in ((-2, height), (-1, width)):
        index, weight = _taps(planes.shape[axis], size)
        weight = weight.to(planes.dtype)
        shape = (-1, 1) if axis == -2 else (-1,)
        parts = (
            planes.index_select(axis, index[:, tap]) * weight[:, tap].reshape(shape) for tap in range(index.shape[1])
        )
        planes = sum(parts, start=torch.zeros((), dtype=planes.dtype))
    return planes


@lru_cache(maxsize=64)
def _taps(inside: int, out: int) -> tuple[Tensor, Tensor]:
    """Indices (out, taps) into a line mirrored at its ends, and weights that add up to one."""
    scale = out / inside
    stretch = min(scale, 1.0)
    reach = 4.0 / stretch
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5
    first = torch.floor(centre - reach / 2)
    index = first[:, None] + torch.arange(math.ceil(reach) + 2, dtype=torch.float64)
    weight = stretch * _cubic(stretch * (centre[:, None] - index))
    weight = weight / weight.sum(1, keepdim=True)
    mirrored = index.long() % (2 * inside)
    mirrored = torch.where(mirrored >= inside, 2 * inside - 1 - mirrored, mirrored)
    used = weight.abs().amax(0) > 0
    return mirrored[:, used], weight[:, used]


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel."""
    x, a = x.abs(), SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros((), dtype=x.dtype)))


def upscaled(planes: Tensor, scale: int) -> Tensor:
    """(..., h, w) -> (..., scale h, scale w), bicubic."""
    return resize(planes, scale * planes.shape[-2], scale * planes.shape[-1])


def downscaled(planes: Tensor, scale: int) -> Tensor:
    """(..., h, w), both multiples of `scale` -> (..., h / scale, w / scale), bicubic with antialiasing."""
    return resize(planes, planes.shape[-2] // scale, planes.shape[-1] // scale)


def cropped(planes: Tensor, scale: int) -> Tensor:
    """Without the last rows and columns that are no multiple of `scale`."""
    height, width = planes.shape[-2:]
    return planes[..., : height - height % scale, : width - width % scale]


def psnr(a: Tensor, b: Tensor, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB of two planes in [0, 1] without `border` pixels at each side; equal ones: inf.

    Raises `BadInput` for planes of unlike size, and where nothing is left within the border.
    """
    if a.shape != b.shape:
        raise BadInput(f"PSNR of {tuple(a.shape)} and {tuple(b.shape)}", "give pictures of one size")
    if min(a.shape[-2:]) <= 2 * border:
        raise BadInput(f"a border of {border} leaves nothing of {tuple(a.shape[-2:])}", "give larger pictures")
    inner = (..., slice(border, a.shape[-2] - border), slice(border, a.shape[-1] - border))
    error = float((a[inner].double() - b[inner].double()).square().mean())
    return math.inf if error == 0.0 else -10.0 * math.log10(error)
