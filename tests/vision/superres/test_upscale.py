"""`upscale` takes pictures of every usual kind and gives the same kind back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from headway.core.errors import BadFile, BadInput
from headway.vision.data import photo
from headway.vision.superres import upscale
from headway.vision.superres.planes import luma, psnr, upscaled


class Bicubic(nn.Module):
    """A network that does what the colours get."""

    radius = 4

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return upscaled(x, self.scale)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_type_and_channels_stay(kind: str, channels: tuple[int, ...]) -> None:
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    given = (np.random.default_rng(0).random((9, 7, *channels)) * white).astype(kind)
    out = upscale(given, 4, network=Bicubic(4))
    assert out.shape == (36, 28, *channels) and out.dtype == kind
    flat = np.full_like(given, white // 2 if kind != "float32" else 0.5)
    spread = upscale(flat, 2, network=Bicubic(2)).astype(np.float64) / white
    assert np.abs(spread - spread.mean()).max() < 1e-5 and abs(spread.mean() - 0.5) < 0.003


def test_a_network_of_bicubic_gives_the_bicubic_picture() -> None:
    picture = photo("chelsea.png")[:60, :80]
    planes = torch.from_numpy(picture.copy()).permute(2, 0, 1).double() / 255
    wanted = upscaled(planes, 2).clamp(0, 1)
    ours = torch.from_numpy(upscale(picture, network=Bicubic(2))).permute(2, 0, 1).double() / 255
    assert psnr(luma(ours), luma(wanted)) > 50.0


def test_files_are_read_and_written(tmp_path: Path) -> None:
    picture = photo("chelsea.png")[:20, :30]
    for name, given in {
        "rgb": picture,
        "grey": picture[..., 0],
        "clear": np.dstack([picture, picture[..., :1]]),
    }.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(given).save(path)
        out = upscale(path, network=Bicubic(2), to=tmp_path / f"{name}2.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{name}2.png")), out)
        assert np.array_equal(out, upscale(given, network=Bicubic(2)))
    deep = (picture[..., 0].astype(np.uint16)) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert upscale(tmp_path / "deep.png", network=Bicubic(2)).dtype == np.uint16


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    good = np.zeros((4, 4), np.float32)
    for bad, words in (
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (good + 2.0, r"scale the picture to \[0, 1\]"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (np.zeros((4, 4), np.int64), "a picture of int64"),
        (tmp_path / "none.png", "no picture"),
    ):
        with pytest.raises(BadInput, match=words):
            upscale(bad, network=Bicubic(2))
    with pytest.raises(BadInput, match="choose 2 or 4"):
        upscale(good, 3)
    (tmp_path / "text.png").write_text("none")
    with pytest.raises(BadFile, match="no picture that can be read"):
        upscale(tmp_path / "text.png", network=Bicubic(2))
    with pytest.raises(BadInput, match="cannot be written"):
        upscale(good, network=Bicubic(2), to=tmp_path / "out.what")
