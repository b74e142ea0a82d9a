"""`upscale`: a picture of any kind, larger: luma by SESR, colour differences and opacity bicubic."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headway.core.errors import BadFile, BadInput, need_extra
from headway.vision.fold import fold
from headway.vision.superres.network import check_scale
from headway.vision.superres.planes import rgb_of, upscaled, ycc
from headway.vision.superres.tiles import TILE, Tiled
from headway.vision.superres.training import Recipe, trained

Array = npt.NDArray[Any]
_WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0, "float64": 1.0}


def upscale(
    image: Any,
    scale: int = 2,
    *,
    variant: str = "m5",
    network: nn.Module | None = None,
    steps: int = Recipe.steps,
    tile: int = TILE,
    to: str | Path | None = None,
) -> Array:
    """A picture `scale` times as high and wide; scale: 2 or 4.

    image: the path of a file, or an array (h, w) of grey or (h, w, c) with c of 1, 3 (RGB) or 4 (RGBA); uint8, uint16,
    or floats in [0, 1]. What comes back has the same type and channels. Luma goes through `network`, (n, 1, h, w) ->
    (n, 1, scale h, scale w), tile by tile; by default `variant`, trained by `steps` steps on scikit-image's photographs
    at the first call (minutes) and cached. to: a file to write, by its suffix.

    Raises `BadInput` for another scale, shape or type, and values that are not finite; `BadFile` for no picture.
    """
    check_scale(scale)
    pixels = _read(Path(image)) if isinstance(image, str | Path) else np.asarray(image)
    white = _checked(pixels)
    if network is None:
        network = _network(variant, scale, steps)
    planes = torch.from_numpy(np.atleast_3d(pixels).astype(np.float64) / white).permute(2, 0, 1).contiguous()
    run = Tiled(network, tile)
    made = (
        _grey(planes, run) if len(planes) == 1 else torch.cat([_colours(planes[:3], run), upscaled(planes[3:], scale)])
    )
    values = made.clamp(0.0, 1.0).permute(1, 2, 0).numpy() * white
    if pixels.dtype.kind == "u":
        values = np.rint(values)
    out = values.astype(pixels.dtype).reshape(*values.shape[:2], *pixels.shape[2:])
    if to is not None:
        _write(out, Path(to))
    return out


def _grey(plane: Tensor, run: Tiled) -> Tensor:
    """(1, h, w) -> (1, scale h, scale w)."""
    low, span = 16.0 / 255.0, 219.0 / 255.0
    return (_luma(low + span * plane[0], run)[None] - low) / span


def _colours(rgb: Tensor, run: Tiled) -> Tensor:
    """(3, h, w) -> (3, scale h, scale w)."""
    planes = ycc(rgb)
    return rgb_of(torch.cat([_luma(planes[0], run)[None], upscaled(planes[1:], run.scale)]))


def _luma(plane: Tensor, run: Tiled) -> Tensor:
    with torch.no_grad():
        return run(plane.float()[None, None])[0, 0].double()


@lru_cache(maxsize=8)
def _network(variant: str, scale: int, steps: int) -> nn.Module:
    return fold(trained(variant, scale, Recipe(steps=steps)))


def _checked(pixels: Array) -> float:
    """The value of white."""
    kind = pixels.dtype.name
    if kind not in _WHITE:
        raise BadInput(f"a picture of {kind}", f"give {', '.join(_WHITE)}")
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise BadInput(f"a picture of shape {pixels.shape}", "give (h, w), or (h, w, c) with 1, 3 or 4 channels")
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise BadInput("the picture holds NaN or infinity", "leave those pixels out or fill them")
        if pixels.min() < 0.0 or pixels.max() > 1.0:
            raise BadInput(f"floats from {pixels.min():g} to {pixels.max():g}", "scale the picture to [0, 1]")
    return _WHITE[kind]


def _read(path: Path) -> Array:
    image = _pillow()
    if not path.is_file():
        raise BadInput(f"no picture {str(path)!r}", "give the path of a file")
    try:
        held = image.open(path)
        if held.mode.startswith("I;16") or held.mode == "I":
            return np.asarray(held).astype(np.uint16)
        clear = "A" in held.mode or "transparency" in held.info
        grey = held.mode in ("1", "L") and not clear
        return np.asarray(held.convert("L" if grey else "RGBA" if clear else "RGB"))
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise BadFile(path, 0, f"no picture that can be read ({str(error).splitlines()[0]})") from None


def _write(pixels: Array, path: Path) -> None:
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels * 255.0).astype(np.uint8)
    if pixels.dtype == np.uint16 and pixels.ndim == 3 and pixels.shape[2] > 1:
        pixels = np.rint(pixels / 257.0).astype(np.uint8)  # Pillow has no 16-bit colours
    made = _pillow().fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    try:
        made.save(path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be written: {str(error).splitlines()[0]}", "choose another name, e.g. out.png"
        ) from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise need_extra("pillow", "vision") from None
    return Image
