"""Planes of luma: resizing as MATLAB does, colours that come back, PSNR."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.vision.superres.photos import pairs
from headway.vision.superres.planes import cropped, downscaled, luma, psnr, resize, rgb_of, upscaled, ycc


def one_by_one(line: list[float], size: int) -> list[float]:
    """MATLAB's `imresize` of a line, written as a sum over all pixels of the line mirrored without end."""
    scale = size / len(line)
    stretch = min(1.0, scale)

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    found = []
    for at in range(size):
        centre = (at + 0.5) / scale - 0.5
        reach = range(math.floor(centre - 2 / stretch) - 1, math.ceil(centre + 2 / stretch) + 2)
        weights = {place: kernel(stretch * (centre - place)) for place in reach}
        mirrored = (*line, *line[::-1])
        total = sum(weight * mirrored[place % len(mirrored)] for place, weight in weights.items())
        found.append(total / sum(weights.values()))
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(1, 20))
def test_a_line_is_resized_as_the_sum_says(line: list[float], size: int) -> None:
    plane = torch.tensor(line, dtype=torch.float64)
    assert np.allclose(resize(plane[None], 1, size)[0], one_by_one(line, size), atol=1e-12)
    assert np.allclose(resize(plane[:, None], size, 1)[:, 0], one_by_one(line, size), atol=1e-12)


def test_the_weights_of_doubling_are_keys_s() -> None:
    impulse = torch.zeros(1, 9, dtype=torch.float64)
    impulse[0, 4] = 1.0
    doubled = 128 * resize(impulse, 1, 18)[0, 5:13]
    assert doubled.tolist() == [-3.0, -9.0, 29.0, 111.0, 111.0, 29.0, -9.0, -3.0]


def test_colours_come_back_and_luma_has_its_limits() -> None:
    rgb = torch.rand(3, 5, 7, dtype=torch.float64)
    assert torch.allclose(rgb_of(ycc(rgb)), rgb)
    ends = luma(torch.tensor([0.0, 1.0], dtype=torch.float64).expand(3, 1, 2))[0] * 255
    assert torch.allclose(ends, torch.tensor([16.0, 235.0], dtype=torch.float64))


def test_a_constant_plane_stays_what_it_is_and_odd_rows_are_cropped() -> None:
    plane = cropped(torch.full((7, 9), 0.3), 4)
    assert plane.shape == (4, 8)
    assert torch.allclose(downscaled(plane, 4), torch.full((1, 2), 0.3))
    assert torch.allclose(upscaled(plane, 2), torch.full((8, 16), 0.3))


def test_bicubic_on_the_held_out_photographs_gives_the_known_psnr() -> None:
    found = [psnr(upscaled(pair.small.double(), 2).clamp(0, 1), pair.large, 4) for pair in pairs("heldout", 2)]
    assert abs(sum(found) / 4 - 29.83) < 0.01  # card, "Measured": planes kept in float
    assert [pair.large.shape for pair in pairs("heldout", 2)] == [(300, 450), (426, 640), (512, 512), (190, 384)]


def test_psnr_counts_the_inside_and_refuses_unlike_sizes() -> None:
    a = torch.rand(12, 12)
    b = a.clone()
    b[:2] = 9.0
    assert psnr(a, b, 2) == math.inf == psnr(a, a)
    assert abs(psnr(a, a + 0.1) - 20.0) < 1e-5
    with pytest.raises(BadInput, match="one size"):
        psnr(a, a[:6])
    with pytest.raises(BadInput, match="leaves nothing"):
        psnr(a, a, 6)
