"""Tiles are the whole picture: in float to rounding, in integers bit for bit; and what 8 bits cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import headway
from headway.core.errors import BadInput
from headway.vision.fold import fold
from headway.vision.superres.network import SESR, Config
from headway.vision.superres.quantised import WEIGHT, Quantised, Range
from headway.vision.superres.tiles import Tiled, spans

TINY = Config(2, 6, 10)


def lively(scale: int = 2) -> SESR:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = SESR(TINY, scale)
        for activation in net.activations:
            nn.init.uniform_(activation.weight, -0.5, 0.5)
    return net.eval()


def in_integers(scale: int = 2) -> Quantised:
    """With ranges of a batch."""
    net = Quantised(lively(scale)).train()
    net(picture(40, 40, 2))
    return net.eval()


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


SIZES = given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), st.sampled_from([2, 4]))


@settings(max_examples=25, deadline=None)
@SIZES
def test_tiles_make_the_whole_picture(height: int, width: int, tile: int, scale: int) -> None:
    net, x = fold(lively(scale)), picture(height, width)
    with torch.no_grad():
        assert (Tiled(net, tile)(x) - net(x)).abs().max() <= 1e-6


@settings(max_examples=25, deadline=None)
@SIZES
def test_tiles_of_integers_are_the_whole_picture_bit_for_bit(height: int, width: int, tile: int, scale: int) -> None:
    net, x = fold(in_integers(scale)), picture(height, width)
    with torch.no_grad():
        assert torch.equal(Tiled(net, tile)(x), net(x))


def test_without_what_surrounds_a_tile_there_are_seams() -> None:
    net, x = fold(lively()), picture(40, 40)
    with torch.no_grad():
        apart = torch.cat([net(x[..., :20]), net(x[..., 20:])], -1)
        assert (apart - net(x)).abs().max() > 1e-3


@given(st.integers(1, 500), st.integers(1, 100))
def test_spans_cover_everything_once_and_are_alike(size: int, most: int) -> None:
    found = list(spans(size, most))
    assert [i for span in found for i in range(span.start, span.stop)] == list(range(size))
    lengths = {span.stop - span.start for span in found}
    assert max(lengths) <= most and max(lengths) - min(lengths) <= 1


def test_integers_give_what_the_simulation_gives() -> None:
    net, x = in_integers(), picture(30, 30)
    with torch.no_grad():
        exact, simulated = net(x), net.train()(x).clamp(0, 1)
        step = float(net.end.scale_zero()[0])
        assert (
            exact - simulated
        ).abs().max() <= 2 * step + 1e-6  # a value at the middle of two codes may go either way
        assert (exact - simulated).abs().mean() < 1e-3
        assert (exact - fold(net.eval())(x)).abs().max() <= 2 * step + 1e-6
        codes = net.first.codes()
    assert codes.abs().max() == WEIGHT and torch.equal(codes, codes.round())


def test_zero_is_exact_and_gradients_move_ranges_both_ways() -> None:
    place = Range().train()
    x = torch.linspace(-0.3, 0.9, 50)
    place(x)
    assert torch.allclose(place.low, torch.tensor(-0.3)) and torch.allclose(place.high, torch.tensor(0.9))
    assert place(torch.zeros(1)) == 0.0
    for target, sign in ((2.0 * x, -1.0), (0.5 * x, 1.0)):  # larger values wanted: widen; smaller: narrow
        place.zero_grad()
        (place(2.0 * x if sign < 0 else x) - target).square().sum().backward()
        assert place.high.grad is not None and place.high.grad * sign > 0


def test_the_settings_of_the_family_reach_the_network() -> None:
    x = picture(20, 24)
    plain = headway.load("sesr(variant=m3, height=20, width=24)")
    tiled = headway.load("sesr(variant=m3, height=20, width=24, tile=9)")
    assert (tiled.run(x) - plain.run(x)).abs().max() <= 1e-6
    assert any(
        isinstance(child, Quantised)
        for child in headway.load("sesr(variant=m3, int8=true, height=20, width=24)").module().modules()
    )
    with pytest.raises(BadInput, match="8 or more"):
        headway.load("sesr(variant=m3, tile=4)")
