"""MobileDet's blocks: inverted bottlenecks, fused ones and Tucker convolutions, as specs and as modules.

Every convolution has TensorFlow's SAME padding, a batch norm and an activation; a block's last one has no activation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.blocks import ConvNormAct, SqueezeExcite, multiple_of

Kind = Literal["I", "N", "F", "T"]


class SameConv(ConvNormAct):
    """With TensorFlow's padding, and its defaults of the norm. decay: of the norm's running statistics."""

    def __init__(
        self,
        inside: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        act: str = "relu6",
        eps: float = 0.01,
        decay: float = 0.99,
    ) -> None:
        super().__init__(inside, out, kernel, stride, groups, act=act, eps=eps, momentum=1.0 - decay, same=True)


@dataclass(frozen=True)
class BlockSpec:
    """One block; `I8k5*` in the card's notation.

    I: 1x1, depthwise, 1x1. N: the same without the first 1x1. F: regular k x k, 1x1. T: 1x1, regular k x k, 1x1.
    """

    kind: Kind
    expansion: int = 1
    """Of I and F: channels between the convolutions over those that come in."""
    kernel: int = 3
    stride: int = 1
    plain: bool = False
    """No residual even where shapes would allow one."""
    ranks: tuple[float, float] = (1.0, 1.0)
    """Of T: channels before and behind the middle convolution, as shares of those that come in and go out."""

    @classmethod
    def parse(cls, text: str) -> BlockSpec:
        """`I8k5*`: expansion 8, kernel 5, stride 2; `T(.25,.75)!`: no residual. Raises `BadInput` for other texts."""
        found = re.fullmatch(r"(?:([IF])([1-9]\d*)|(N)|(T)\((0?\.\d+|1),(0?\.\d+|1)\))(?:k([357]))?([*!]?)", text)
        if found is None:
            raise BadInput(f"{text!r} is no block", "write e.g. I8k5*, F4, N, T(.25,.75)!")
        wide, expansion, bare, tucker, first, second, kernel, mark = found.groups()
        ranks = (float(first), float(second)) if tucker else (1.0, 1.0)
        kind: Kind = wide or bare or tucker
        return cls(kind, int(expansion or 1), int(kernel or 3), 2 if mark == "*" else 1, bool(mark), ranks)

    def build(self, inside: int, out: int, act: str = "relu6", gate: bool = False) -> Block:
        return Block(self, inside, out, act, gate)


class Block(nn.Module):
    """See `BlockSpec`: (n, inside, h, w) -> (n, out, ceil(h/stride), ceil(w/stride)).

    Its input is added where stride, channels and the spec allow it. gate: squeeze-and-excitation before the last
    1x1, to a quarter of the channels there.
    """

    def __init__(self, spec: BlockSpec, inside: int, out: int, act: str = "relu6", gate: bool = False) -> None:
        super().__init__()
        wide, kernel, stride = inside * spec.expansion, spec.kernel, spec.stride
        layers: list[nn.Module]
        if spec.kind == "T":
            first, wide = multiple_of(inside * spec.ranks[0]), multiple_of(out * spec.ranks[1])
            layers = [SameConv(inside, first, act=act), SameConv(first, wide, kernel, stride, act=act)]
        elif spec.kind == "F":
            layers = [SameConv(inside, wide, kernel, stride, act=act)]
        else:
            expand = [SameConv(inside, wide, act=act)] if spec.kind == "I" else []
            layers = [*expand, SameConv(wide, wide, kernel, stride, wide, act=act)]
        if gate:
            layers.append(SqueezeExcite(wide, multiple_of(wide / 4), act=F.hardswish))
        self.layers = nn.Sequential(*layers, SameConv(wide, out, act="none"))
        self.residual = not spec.plain and stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y
