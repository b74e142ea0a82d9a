"""Networks with bits: who gets which, what calibration sets, and that eight bits lose nothing much."""

from __future__ import annotations

import random
from typing import cast

import pytest
import torch
from searching import images
from torch import nn

from headway.core.packed_modules import site_kind
from headway.vision.fold import randomise_norms
from headway.vision.quantizers import Clipped
from headway.vision.search.apq_nets import bits_of, mbv2, mini
from headway.vision.search.blocks import PlainNet
from headway.vision.search.quantised_net import (
    BlockBits,
    QatRecipe,
    QuantisedConv,
    calibrate,
    quantise,
    quantised_layers,
    size_bytes,
    train_quantised,
)


def built(bits: BlockBits) -> PlainNet:
    torch.manual_seed(0)
    macro = mini()
    net = macro.net(macro.extreme(True)).build()
    randomise_norms(net)
    return quantise(net, [bits] * 3)


def test_every_convolution_has_its_bits_and_signs_only_where_values_have_them() -> None:
    macro = mbv2().for_images(3, 10, 32)
    genotype = macro.space.random(random.Random(3))
    with torch.device("meta"):
        spec = macro.net(genotype)
    net = quantise(spec.build(), bits_of(macro, genotype))
    found = [
        (layer.levels.bits, layer.clip.bits if isinstance(layer.clip, Clipped) else None, _signed(layer))
        for layer in quantised_layers(net)
    ]
    want: list[tuple[int, int | None, bool | None]] = [(8, None, None), (8, 8, False), (8, 8, False)]
    for bits in bits_of(macro, genotype):
        want += [(bits.pww, bits.pwa, True), (bits.dww, bits.dwa, False), (bits.pww, bits.pwa, False)]
    assert found == [*want, (8, 8, True), (8, 8, False)]
    assert not any(isinstance(m, nn.Conv2d) and not isinstance(m, QuantisedConv) for m in net.modules())


def _signed(layer: nn.Module) -> bool | None:
    clip = layer.clip
    return clip.signed if isinstance(clip, Clipped) else None


def test_the_first_block_after_a_rectified_stem_is_unsigned_and_a_bare_head_signed() -> None:
    signs = [_signed(layer) for layer in quantised_layers(built(BlockBits(4, 4, 4, 4)))]
    assert signs == [None, False, False, False, True, False, False, True, False, False, True]


def test_weights_and_inputs_of_a_layer_have_no_more_levels_than_bits_allow() -> None:
    net = built(BlockBits(4, 8, 8, 4))
    calibrate(net, images())
    seen: list[tuple[QuantisedConv, torch.Tensor]] = []
    for layer in quantised_layers(net):
        if isinstance(layer, QuantisedConv):
            layer.register_forward_pre_hook(lambda module, x: seen.append((cast(QuantisedConv, module), x[0])))
    with torch.no_grad():
        net(images().test.images)
    assert len(seen) == 10
    for layer, x in seen:
        assert len(layer.levels(layer.weight).unique()) <= 2**layer.levels.bits - 1
        if isinstance(layer.clip, Clipped):
            assert len(layer.clip(x).unique()) <= 2**layer.clip.bits


def test_calibration_sets_limits_by_what_comes_in_and_eight_bits_change_little() -> None:
    torch.manual_seed(0)
    macro = mini()
    plain = macro.net(macro.extreme(True)).build()
    randomise_norms(plain)
    x = images().test.images
    with torch.no_grad():
        exact = plain.eval()(x)
        net = quantise(plain, [BlockBits(8, 8, 8, 8)] * 3)
        calibrate(net, images())
        error = float((net(x) - exact).std() / exact.std())
    assert error < 0.05
    limits = [float(m.limit.detach()) for m in net.modules() if isinstance(m, Clipped)]
    assert all(0 < limit <= 6 for limit in limits) and len(set(limits)) > 5


def test_a_network_with_bits_learns_and_its_limits_too() -> None:
    net = built(BlockBits(4, 4, 4, 4))
    calibrate(net, images())
    before = [layer.clip.limit.detach().clone() for layer in quantised_layers(net) if isinstance(layer.clip, Clipped)]
    train_quantised(net, images(), QatRecipe(2.0, 8, 0.05), seed=0)
    after = [layer.clip.limit.detach() for layer in quantised_layers(net) if isinstance(layer.clip, Clipped)]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert QatRecipe(2.0, 8, 0.05).steps(80) == 20 and QatRecipe(0.001, 8, 0.05).steps(80) == 1
    assert not net.training


def test_other_weight_systems_leave_a_layer_with_bits_alone() -> None:
    assert {site_kind(layer) for layer in quantised_layers(built(BlockBits(8, 8, 8, 8)))} == {None}


def test_size_counts_bits() -> None:
    small, large = (size_bytes(built(BlockBits(b, 8, b, 8))) for b in (4, 8))
    weights = sum(layer.weight.numel() for layer in quantised_layers(built(BlockBits(4, 8, 4, 8)))[1:-1])
    assert large - small == pytest.approx(weights / 2)
