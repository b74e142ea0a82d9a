"""FBNet: a layer-wise supernet under Gumbel-softmax, latency in the loss (Wu et al., CVPR 2019, arXiv:1812.03443)."""

from __future__ import annotations

from collections.abc import Callable

from headway.vision.search.blocks import ConvSpec, HeadSpec, NetSpec
from headway.vision.search.layerwise import SKIP, Layer, Layerwise, d400, read_ops
from headway.vision.search.network import Macro

STAGES = ((1, 16, 1), (4, 24, 2), (4, 32, 2), (4, 64, 2), (4, 112, 1), (4, 184, 2), (1, 352, 1))
"""(layers, width, stride of the first)."""
OPS = ("k3e1", "k3e1g2", "k3e3", "k3e6", "k5e1", "k5e1g2", "k5e3", "k5e6", SKIP)

PUBLISHED: dict[str, tuple[int, str]] = {
    "a": (1504, "- · 3,3 1,3 - - · 6,5 3,3 1,5 3,3 · 6,5 3,5 1,5g 6,5 · 6,3 1,5g 3,5 1,3g · 6,5 6,5 3,5 6,5 · 6,5"),
    "b": (1984, "1,3 · 6,3 1,5 1,3 1,3 · 6,5 3,5 6,3 6,5 · 6,5 6,5 - 3,5 · 6,5 1,3 1,5 3,5 · 6,5 1,5 6,5 6,5 · 6,3"),
    "c": (1984, "1,3 · 6,3 - 1,3 1,3 · 6,5 3,5 6,5 6,3 · 6,5 3,5 6,5 6,5 · 6,5 6,5 6,5 3,5 · 6,5 6,5 6,5 6,5 · 6,3"),
}
"""Width of the last convolution; (expansion, kernel) of each layer, as mobile-vision defines them."""


def fbnet22(last: int = 1984, *, bias: bool = True, expand_e1: bool = False) -> Layerwise:
    """The paper's space: 22 layers of nine candidates."""
    layers = []
    inside = 16
    for depth, width, stride in STAGES:
        for index in range(depth):
            layers.append(Layer(inside, width, stride if index == 0 else 1, OPS))
            inside = width
    return Layerwise(
        "fbnet22",
        ConvSpec(3, 16, 3, 2, "relu"),
        tuple(layers),
        HeadSpec(last, 1000),
        224,
        last=ConvSpec(inside, last, act="relu"),
        bias=bias,
        expand_e1=expand_e1,
    )


SPACES: dict[str, Callable[[], Macro]] = {"fbnet22": fbnet22, "d400": d400}

ABOUT = {
    "fbnet22": "22 layers of nine candidates, for images of 224 pixels (give --data)",
    "d400": "4 layers, 400 networks, for scikit-learn's digits",
}


def published(variant: str, *, bias: bool = True, expand_e1: bool = False) -> NetSpec:
    """A released net; the paper's and timm's have no biases, and `expand_e1`."""
    last, rows = PUBLISHED[variant]
    return fbnet22(last, bias=bias, expand_e1=expand_e1).spec(read_ops(rows))
