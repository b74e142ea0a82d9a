"""APQ: architecture, widths and bits searched together (Wang et al., CVPR 2020, arXiv:2006.08509)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from headway.vision.search.blocks import BlockSpec, ConvSpec, HeadSpec
from headway.vision.search.network import Macro
from headway.vision.search.quantised_net import BlockBits
from headway.vision.search.space import Genotype
from headway.vision.search.stagewise import BIT_KINDS, Stage, Stagewise

BIT_NAMES = ("w", "a", *BIT_KINDS)
"""How the names of choices of bits begin."""


def mbv2() -> Stagewise:
    """The paper's space: 21 blocks with kernel, depth, fine widths and bits."""
    depths = ((2, 3, 4),) * 5 + ((1,),)
    shapes = zip((24, 40, 80, 96, 192, 320), (2, 2, 2, 1, 2, 1), depths, strict=True)
    return Stagewise(
        "mbv2",
        ConvSpec(3, 32, 3, 2),
        tuple(Stage(*shape) for shape in shapes),
        HeadSpec(1280, 1000),
        224,
        (3, 5, 7),
        (4, 6),
        (BlockSpec(32, 16, 32, 3, 1, expand=False),),
        ConvSpec(320, 1280),
        width_step=8,
        bits=(4, 6, 8),
        forbidden=(("k", 7, "dwa", 4),),
    )


def mini(tied: bool = False) -> Stagewise:
    """The first three blocks of D400 at half the resolution, widened, with 4 or 8 bits.

    tied: 1x1 and depthwise convolutions share their bits: 13,824 networks.
    """
    return Stagewise(
        "d400-tied" if tied else "d400-bits",
        ConvSpec(1, 8, 3, 2),
        (Stage(12, 2, (2,)), Stage(16, 1, (1,))),
        HeadSpec(16, 10),
        16,
        (3, 5),
        (2, 3, 4),
        divisor=1,
        bits=(4, 8),
        tied=tied,
    )


def without_bits(macro: Stagewise) -> Stagewise:
    """The architecture alone: what the full-precision predictor sees."""
    return replace(macro, bits=(), forbidden=())


def bits_of(macro: Stagewise, genotype: Genotype) -> list[BlockBits]:
    """The bits of every searched block that a genotype has, in order."""
    kinds = ("w", "a", "w", "a") if macro.tied else BIT_KINDS
    return [
        BlockBits(*(int(genotype[f"{kind}{place.name}"]) for kind in kinds)) for place, _, _ in macro.blocks(genotype)
    ]


def as_eight_bits(genotype: Genotype) -> Genotype:
    """The genotype as the released predictor sees it: every policy is 8 bits."""
    return {name: 8 if name.startswith(BIT_NAMES) else value for name, value in genotype.items()}


SPACES: dict[str, Callable[[], Macro]] = {"mbv2": mbv2, "d400-bits": mini, "d400-tied": lambda: mini(tied=True)}
ABOUT = {
    "mbv2": "ProxylessNAS's shape with elastic depth, kernels, fine widths and 4, 6 or 8 bits a block (give --data)",
    "d400-bits": "three blocks with kernels, widths and 4 or 8 bits for each kind of tensor, for scikit-learn's digits",
    "d400-tied": "the same with the bits of 1x1 and depthwise convolutions tied: 13,824 networks",
}
