"""Nested networks: what is cut out computes what the supernet does, sorting changes nothing that is trained."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from searching import images

from headway.core.errors import BadInput
from headway.vision.fold import randomise_norms
from headway.vision.search.blocks import ConvSpec, HeadSpec
from headway.vision.search.elastic import ElasticBlock, ElasticNet
from headway.vision.search.images import Split
from headway.vision.search.ofa_nets import mini
from headway.vision.search.recalibrate import recalibrate
from headway.vision.search.stagewise import Stage, Stagewise
from headway.vision.search.train import channels_last


def rich() -> Stagewise:
    """Small, with all that the paper's space has: three kernels, three widths, squeeze-and-excitation, resolutions."""
    stages = (Stage(16, 2, (1, 2), "relu", True), Stage(24, 1, (1, 2, 3), "hswish"))
    stem, last = ConvSpec(3, 8, 3, 2, "hswish", eps=1e-5), ConvSpec(24, 32, act="hswish", eps=1e-5)
    return Stagewise(
        "rich", stem, stages, HeadSpec(32, 5, 16), 32, (3, 5, 7), (2, 3, 4), last=last, resolutions=(24, 32)
    )


def net(macro: Stagewise) -> ElasticNet:
    torch.manual_seed(0)
    made = ElasticNet(macro)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data += 0.1 * torch.randn_like(parameter)  # the kernels' matrices among them
    randomise_norms(made)
    return made.eval()


def test_fifty_sub_networks_cut_out_compute_what_the_supernet_does() -> None:
    macro, rng = rich(), random.Random(0)
    supernet = net(macro)
    for _ in range(50):
        genotype = macro.space.random(rng)
        x = torch.randn(2, 3, int(genotype["r"]), int(genotype["r"]))
        with torch.no_grad():
            assert torch.allclose(supernet.extract(genotype).eval()(x), supernet(x, genotype), atol=1e-5)


def test_a_smaller_kernel_is_the_centre_times_the_chained_matrices() -> None:
    macro = rich()
    block = ElasticBlock(macro.block(macro.places[0], 7, 32), (3, 5, 7))
    assert torch.equal(block.kernel(3, 20), block.depthwise[:20, :, 2:5, 2:5])  # identity at the start
    for matrix in block.matrices.values():
        torch.nn.init.normal_(matrix)
    five = (block.depthwise[:, :, 1:6, 1:6].reshape(32, 25) @ block.matrices["7to5"].T).reshape(32, 1, 5, 5)
    three = (five[:, :, 1:4, 1:4].reshape(32, 9) @ block.matrices["5to3"].T).reshape(32, 1, 3, 3)
    assert torch.allclose(block.kernel(5, 32), five) and torch.allclose(block.kernel(3, 32), three)


def test_sorting_channels_leaves_trained_widths_as_they_are() -> None:
    macro = rich()
    supernet, x = net(macro), torch.randn(2, 3, 32, 32)
    largest = macro.extreme(True)
    middle = {name: 3 if name[0] == "e" else value for name, value in largest.items()}
    small = {name: 2 if name[0] == "e" else value for name, value in largest.items()}
    with torch.no_grad():
        before = [supernet(x, genotype) for genotype in (largest, middle, small)]
        supernet.sort_channels((4, 3))
        after = [supernet(x, genotype) for genotype in (largest, middle, small)]
    assert torch.allclose(before[0], after[0], atol=1e-5) and torch.allclose(before[1], after[1], atol=1e-5)
    assert not torch.allclose(before[2], after[2], atol=1e-3)
    weight = supernet.blocks["2_1"].project.abs().sum((0, 2, 3))  # type: ignore[union-attr]
    edge = macro.middle(16, 3)
    for band in (weight[:edge], weight[edge:]):
        assert torch.equal(band, band.sort(descending=True).values)


def test_batch_norm_is_estimated_from_batches_layer_by_layer() -> None:
    macro = mini()
    plain = net(macro).extract(macro.extreme(True))
    split = images().train
    many = Split(split.images.repeat(5, 1, 1, 1), split.labels.repeat(5))
    for norm in plain.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # trained: what it has seen may not count
            norm.num_batches_tracked.fill_(100)
    recalibrate(plain, many, 400)
    first = plain.stem.norm
    with torch.no_grad():
        seen = plain.stem.conv(channels_last(many.images[:400]))
    batches = seen.split(200)
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variance = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(first.running_mean, mean, atol=1e-5) and torch.allclose(
        first.running_var, variance, rtol=1e-4
    )
    assert not plain.training and first.momentum == 0.1
    with pytest.raises(BadInput, match="at least 200"):
        recalibrate(plain, split)


def test_statistics_of_channels_that_do_not_run_are_left_alone() -> None:
    macro = replace(rich(), resolutions=())
    supernet = net(macro).train()
    norm = supernet.blocks["1_1"].norms[0]  # type: ignore[union-attr]
    before = norm.running_mean.clone()
    supernet(torch.randn(4, 3, 32, 32), macro.extreme(False))
    narrow = macro.middle(8, 2)
    assert torch.equal(before[narrow:], norm.running_mean[narrow:]) and not torch.equal(
        before[:narrow], norm.running_mean[:narrow]
    )
