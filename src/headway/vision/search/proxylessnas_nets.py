"""ProxylessNAS: one path at a time, binary gates, latency in the loss (Cai, Zhu & Han, ICLR 2019, arXiv:1812.00332)."""

from __future__ import annotations

from collections.abc import Callable

from headway.vision.search.blocks import BlockSpec, ConvSpec, HeadSpec, NetSpec
from headway.vision.search.layerwise import SKIP, Layer, Layerwise, d400, read_ops
from headway.vision.search.network import Macro

STRIDES = (2, 2, 2, 1, 2, 1)
DEPTHS = (4, 4, 4, 4, 4, 1)
OPS = ("k3e3", "k5e3", "k7e3", "k3e6", "k5e6", "k7e6")

MOBILE = "3,5 3,3 - - · 3,7 3,3 3,5 3,5 · 6,7 3,5 3,5 3,5 · 6,5 3,5 3,5 3,5 · 6,7 6,7 3,7 3,7 · 6,7"
GPU = "3,5 - - - · 3,7 - - 3,3 · 6,7 - - 3,5 · 6,5 - 3,3 3,5 · 6,7 6,7 6,7 6,5 · 6,7"
CPU = "6,3 3,3 3,3 3,3 · 6,3 3,3 3,3 3,5 · 6,3 - - 3,3 · 6,5 3,3 3,3 3,3 · 6,5 3,5 3,5 3,3 · 6,5"
PUBLISHED: dict[str, tuple[tuple[int, ...], str]] = {
    "mobile": ((32, 16, 32, 40, 80, 96, 192, 320, 1280), MOBILE),
    "gpu": ((40, 24, 32, 56, 112, 128, 256, 432, 1728), GPU),
    "cpu": ((40, 24, 32, 48, 88, 104, 216, 360, 1432), CPU),
    "mobile-14": ((48, 24, 40, 56, 112, 136, 256, 448, 1792), MOBILE),
}
"""Released nets: widths of stem, first block, six stages and last convolution; (expansion, kernel) of each block."""


def mbv2(widths: tuple[int, ...] = (32, 16, 24, 40, 80, 96, 192, 320, 1280)) -> Layerwise:
    """The paper's space: 21 blocks around the macro-architecture of MobileNetV2."""
    stem, first, *stages, last = widths
    layers = []
    inside = first
    for width, stride, depth in zip(stages, STRIDES, DEPTHS, strict=True):
        for index in range(depth):
            layer = Layer(inside, width, stride if index == 0 else 1, OPS)
            layers.append(Layer(inside, width, layer.stride, (*OPS, SKIP)) if layer.shape_kept else layer)
            inside = width
    return Layerwise(
        "mbv2",
        ConvSpec(3, stem, 3, 2),
        tuple(layers),
        HeadSpec(last, 1000),
        224,
        (BlockSpec(stem, first, stem, 3, 1, expand=False),),
        ConvSpec(inside, last),
    )


SPACES: dict[str, Callable[[], Macro]] = {"mbv2": mbv2, "d400": d400}

ABOUT = {
    "mbv2": "21 layers of MobileNetV2's shape, 6 or 7 candidates each, for images of 224 pixels (give --data)",
    "d400": "4 layers, 400 networks, for scikit-learn's digits",
}


def published(variant: str) -> NetSpec:
    """A released net."""
    widths, rows = PUBLISHED[variant]
    return mbv2(widths).spec(read_ops(rows))
