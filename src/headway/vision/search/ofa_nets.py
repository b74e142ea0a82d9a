"""Once-for-All: one nested network, shrunk progressively (Cai et al., ICLR 2020, arXiv:1908.09791)."""

from __future__ import annotations

from collections.abc import Callable

from headway.vision.blocks import make_divisible
from headway.vision.search.blocks import BlockSpec, ConvSpec, HeadSpec, NetSpec
from headway.vision.search.network import Macro
from headway.vision.search.stagewise import Stage, Stagewise

DEPTHS = (2, 3, 4)
RESOLUTIONS = tuple(range(128, 225, 4))
STAGES = ((24, 2, "relu", False), (40, 2, "relu", True), (80, 2, "hswish", False), (112, 1, "hswish", True))
STAGES = (*STAGES, (160, 2, "hswish", True))
"""(width, stride, activation, squeeze-and-excitation)."""

PUBLISHED: dict[str, tuple[float, int, str]] = {
    "max": (1.0, 224, " · ".join(["6,7 6,7 6,7 6,7"] * 5)),
    "min": (1.0, 128, " · ".join(["3,3 3,3"] * 5)),
    "flops-595m": (
        1.2,
        236,
        "3,3 4,5 3,3 · 4,5 4,5 6,3 3,5 · 6,7 6,5 3,3 4,5 · 6,3 6,5 6,7 4,3 · 6,3 6,3 6,5 3,3",
    ),
    "flops-389m": (1.2, 224, "3,3 3,3 · 3,5 6,5 3,3 · 4,5 4,5 3,3 · 6,5 4,5 4,3 4,3 · 6,3 6,3 6,7 3,3"),
}
"""Width multiplier, resolution, (expansion, kernel) of each block."""


def mbv3(width: float = 1.0) -> Stagewise:
    """The paper's space, around MobileNetV3."""
    stem, last, hidden = (make_divisible(c * width) for c in (16, 960, 1280))
    stages = tuple(Stage(make_divisible(w * width), s, DEPTHS, act, squeeze) for w, s, act, squeeze in STAGES)
    return Stagewise(
        "mbv3",
        ConvSpec(3, stem, 3, 2, "hswish", eps=1e-5),
        stages,
        HeadSpec(last, 1000, hidden),
        224,
        (3, 5, 7),
        (3, 4, 6),
        (BlockSpec(stem, stem, stem, 3, 1, "relu", expand=False, eps=1e-5),),
        ConvSpec(stages[-1].width, last, act="hswish", eps=1e-5),
        resolutions=RESOLUTIONS,
    )


def mini() -> Stagewise:
    """D400 nested: its two pairs of blocks are elastic stages; 400 sub-networks."""
    return Stagewise(
        "d400",
        ConvSpec(1, 8, 3),
        (Stage(12, 2, (1, 2)), Stage(16, 1, (1, 2))),
        HeadSpec(16, 10),
        16,
        (3, 5),
        (1, 3),
        divisor=1,
    )


SPACES: dict[str, Callable[[], Macro]] = {"mbv3": mbv3, "mbv3-w1.2": lambda: mbv3(1.2), "d400": mini}
ABOUT = {
    "mbv3": "MobileNetV3's shape with elastic depth, kernels, widths and resolution (give --data)",
    "mbv3-w1.2": "the same, 1.2 times as wide",
    "d400": "two elastic stages, 400 sub-networks, for scikit-learn's digits",
}


def published(variant: str) -> NetSpec:
    """The largest or the smallest sub-network, or a released one."""
    width, size, rows = PUBLISHED[variant]
    macro = mbv3(width)
    spec = macro.net(macro.genotype(rows, macro.size))
    return spec.for_images(spec.stem.inside, spec.head.classes, size)
