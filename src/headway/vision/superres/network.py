"""The network of SESR.

    h0 = first(x - 1/2)                 5x5, 1 -> f
    h  = PReLU(block(h))                3x3, f -> f, m times, from h0
    y  = last(h + h0) + x               5x5, f -> s^2; x is added to each of the s^2 maps
    out = s^2 maps interleaved, clipped to [0, 1]

Training holds each convolution as a `LinearBlock`; `fold` makes plain ones of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.superres.linear_block import LinearBlock


@dataclass(frozen=True)
class Config:
    """One variant."""

    blocks: int
    """Convolutions of 3x3: m."""
    features: int
    """Channels between convolutions: f."""
    wide: int
    """Channels inside a linear block."""


CONFIGS = {
    "m3": Config(3, 16, 256),
    "m5": Config(5, 16, 256),
    "m7": Config(7, 16, 256),
    "m11": Config(11, 16, 64),
    "xl": Config(11, 32, 64),
}
SCALES = (2, 4)


def check_scale(scale: int) -> int:
    """The scale; raises `BadInput` unless it is 2 or 4."""
    if scale not in SCALES:
        raise BadInput(f"scale={scale}", "choose 2 or 4")
    return scale


def depth_to_space(x: Tensor) -> Tensor:
    """(n, 4c, h, w) -> (n, c, 2h, 2w); channel (2i + j) c + k goes to row i, column j of map k, as in TensorFlow.

    `pixel_shuffle` reads channel 4k + 2i + j, which differs where c > 1, that is at the first of two.
    """
    return torch.pixel_shuffle(x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


class SESR(nn.Module):
    """(n, 1, h, w) of luma in [0, 1] -> (n, 1, scale h, scale w); clipped in `eval`, not while training."""

    def __init__(self, config: Config, scale: int = 2, linear: bool = True) -> None:
        """linear: hold linear blocks; else plain convolutions, for a training without over-parameterisation."""
        super().__init__()
        self.scale = check_scale(scale)
        make = partial(LinearBlock, wide=config.wide) if linear else _convolution
        wide = config.features
        self.first = make(1, wide, 5)
        self.blocks = nn.ModuleList(make(wide, wide, 3) for _ in range(config.blocks))
        self.activations = nn.ModuleList(nn.PReLU(wide, init=0.0) for _ in range(config.blocks))
        self.last = make(wide, scale * scale, 5)

    @property
    def radius(self) -> int:
        """Pixels of the input, in each direction, that an output depends on."""
        return 2 + len(self.blocks) + 2

    def expanded(self) -> SESR:
        """Itself, with every linear block run as two convolutions."""
        for child in self.modules():
            if isinstance(child, LinearBlock):
                child.collapsed = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 1:
            raise BadInput(f"SESR was given {tuple(x.shape)}", "it takes luma, (n, 1, height, width)")
        start = h = self.first(x - 0.5)
        for block, activation in zip(self.blocks, self.activations, strict=True):
            h = activation(block(h))
        y = self.last(h + start) + x
        for _ in range(self.scale // 2):
            y = depth_to_space(y)
        return y if self.training else y.clamp(0.0, 1.0)


def _convolution(inside: int, out: int, kernel: int) -> nn.Conv2d:
    made = nn.Conv2d(inside, out, kernel, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(made.weight)
    return made
