"""Released nets of the four search systems have the counts of their definitions, to the unit."""

from __future__ import annotations

import pytest
import torch

from headway.core.errors import BadInput
from headway.vision.count import count
from headway.vision.search import fbnet_nets, ofa_nets, proxylessnas_nets
from headway.vision.search.blocks import BlockSpec, NetSpec
from headway.vision.search.stagewise import Stagewise


def counts(spec: NetSpec) -> tuple[int, int]:
    with torch.device("meta"):
        found = count(spec.build(), torch.empty(spec.shape()))
    return found.trainable, found.layer_macs


@pytest.mark.parametrize(
    ("variant", "parameters", "macs"),
    [
        ("mobile", 4_080_512, 320_427_584),
        ("gpu", 7_119_848, 465_260_160),
        ("cpu", 4_361_648, 439_243_864),
        ("mobile-14", 6_857_568, 580_883_408),
    ],
)
def test_proxyless_nets_count_as_released(variant: str, parameters: int, macs: int) -> None:
    assert counts(proxylessnas_nets.published(variant)) == (parameters, macs)


@pytest.mark.parametrize(
    ("variant", "bias", "expand_e1", "parameters", "macs"),
    [
        ("a", True, False, 4_319_712, 244_452_664),
        ("b", True, False, 4_816_216, 291_004_424),
        ("c", True, False, 5_590_784, 378_136_224),
        ("a", False, False, 4_304_584, 244_452_664),
        ("b", False, False, 4_801_368, 291_004_424),
        ("c", False, False, 5_570_664, 378_136_224),
        ("c", False, True, 5_572_200, 384_960_160),  # timm's fbnetc_100
    ],
)
def test_fbnets_count_as_released(variant: str, bias: bool, expand_e1: bool, parameters: int, macs: int) -> None:
    assert counts(fbnet_nets.published(variant, bias=bias, expand_e1=expand_e1)) == (parameters, macs)


@pytest.mark.parametrize(
    ("variant", "size", "parameters", "macs"),
    [
        ("max", 224, 7_664_760, 566_170_656),
        ("min", 224, 3_410_792, 121_278_672),
        ("min", 128, 3_410_792, 41_476_224),
        ("flops-595m", 236, 9_135_928, 595_189_032),
        ("flops-389m", 224, 8_386_544, 389_487_856),
    ],
)
def test_once_for_all_sub_networks_count_as_released(variant: str, size: int, parameters: int, macs: int) -> None:
    assert counts(ofa_nets.published(variant).for_images(3, 1000, size)) == (parameters, macs)


def test_the_largest_net_with_the_smallest_kernels_counts_as_computed() -> None:
    macro = ofa_nets.mbv3()
    largest = macro.extreme(True)
    small = {name: 3 if name[0] == "k" else value for name, value in largest.items()}
    assert counts(macro.net(small)) == (7_299_960, 433_141_536)


def test_groups_need_even_widths() -> None:
    with pytest.raises(BadInput, match="even widths"):
        BlockSpec(15, 16, 15, 3, 1, groups=2, expand=False)


def test_a_middle_width_that_rounding_doubles_is_offered_once() -> None:
    mini = ofa_nets.mini()
    narrow = Stagewise("narrow", mini.stem, mini.stages, mini.head, 16, (3,), (3, 4))
    assert narrow.middles(2) == (8,)
