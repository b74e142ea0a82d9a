"""APQ: architecture, widths and bits searched together (Wang et al., CVPR 2020, arXiv:2006.08509)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from headway.vision.search.blocks import BlockSpec, ConvSpec, HeadSpec, NetSpec
from headway.vision.search.network import Macro
from headway.vision.search.stagewise import Stage, Stagewise


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


def without_bits(macro: Stagewise) -> Stagewise:
    """The architecture alone: what the full-precision predictor sees."""
    return replace(macro, bits=(), forbidden=())


SPACES: dict[str, Callable[[], Macro]] = {"mbv2": mbv2}


def published(variant: str) -> NetSpec:
    """`max` or `min`: the ends of the space."""
    macro = mbv2()
    return macro.net(macro.extreme(variant == "max"))
