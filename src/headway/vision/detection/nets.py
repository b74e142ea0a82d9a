"""Backbones of MobileDet as data, and the detectors on them: SSDLite heads on six maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.detection.blocks import BlockSpec, SameConv
from headway.vision.runtime.net import NativeNet

LEAST = 33
"""Pixels a side; the released extractor takes no smaller images."""
EXTRA = (512, 256, 256, 128)
"""Channels of the maps behind the backbone's."""
BOXES = (3, 6, 6, 6, 6, 6)
"""Anchors per pixel of each map."""
HEAD_NORM = {"eps": 1e-3, "decay": 0.97}
PRIOR_LOGIT = -4.6
"""Initial bias of class logits: nothing is there (a probability of 0.01)."""


@dataclass(frozen=True)
class NetSpec:
    """A backbone: a 3x3 convolution of stride 2, then stages of one width."""

    stem: int
    stages: tuple[tuple[int, str], ...]
    """(width, blocks in the notation of `BlockSpec.parse`, separated by blanks)."""
    act: str = "relu6"
    gate: bool = False

    def blocks(self) -> list[tuple[int, int, BlockSpec]]:
        """(channels in, channels out, block) of all blocks, in order."""
        found = []
        inside = self.stem
        for width, text in self.stages:
            for word in text.split():
                found.append((inside, width, BlockSpec.parse(word)))
                inside = width
        return found


NETS = {
    "cpu": NetSpec(
        16,
        (
            (8, "N"),
            (16, "I4*"),
            (32, "I8* I4 I4 I4"),
            (72, "I8k5* I8 I4k5 I4 I8! I8 I8 I8"),
            (104, "I8k5* I4k5 I4k5 I4"),
            (144, "I8!"),
        ),
        act="hswish",
        gate=True,
    ),
    "dsp": NetSpec(
        32,
        (
            (24, "N"),
            (32, "F4* F4 I4 T(.25,.75)"),
            (64, "F8* I4 F4 F4"),
            (120, "F8* I4 I8 I8"),
            (144, "F8! I8 I8 I8"),
            (160, "I4* I4 F4 T(.75,.75)"),
            (240, "I8!"),
        ),
    ),
    "edgetpu": NetSpec(
        32,
        (
            (16, "T(.25,.75)!"),
            (16, "F8* F4 F8 F4"),
            (40, "F8k5* F4 F4 F4"),
            (72, "I8* I8 F4 F4"),
            (96, "I8k5! I8k5 I8 I8"),
            (120, "I8k5* I8 I4k5 I8"),
            (384, "I8k5!"),
        ),
    ),
    "gpu": NetSpec(
        32,
        (
            (16, "T(.25,.25)!"),
            (32, "F8* T(.25,.25) T(.25,.25) T(.25,.25)"),
            (64, "F8* F8 F8 F4"),
            (128, "F8* F4 F4 F4"),
            (128, "F8! F8 F8 F8"),
            (128, "F4* F4 F4 F4"),
            (384, "I8!"),
        ),
    ),
}
"""The four found networks, by the hardware they were searched for."""


class MobileDet(nn.Module):
    """(n, 3, h, w) -> the last map of 1/16 of the size and the last one of 1/32, finest first."""

    def __init__(self, spec: NetSpec, in_chans: int = 3) -> None:
        super().__init__()
        blocks = spec.blocks()
        self.stem = SameConv(in_chans, spec.stem, 3, 2, act=spec.act)
        self.blocks = nn.ModuleList(block.build(a, b, spec.act, spec.gate) for a, b, block in blocks)
        ends = [index for index, (_, _, block) in enumerate(blocks) if block.stride == 2]
        if len(ends) != 4:
            raise BadInput(f"{1 + len(ends)} layers of stride 2", "a backbone has five, the stem among them")
        self.tap = ends[-1] - 1
        """The block whose map has 1/16 of the size."""
        self.widths = (blocks[self.tap][1], blocks[-1][1])
        for child in self.modules():
            if isinstance(child, nn.Conv2d):
                nn.init.kaiming_normal_(child.weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.tap:
                maps.append(x)
        return [*maps, x]


class Predictor(nn.Module):
    """Depthwise 3x3 and 1x1 with bias: (n, inside, h, w) -> (n, h * w * boxes, values).

    Anchors run over rows, columns, then the boxes of a pixel.
    """

    def __init__(self, inside: int, boxes: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.depthwise = SameConv(inside, inside, 3, groups=inside, **HEAD_NORM)
        self.project = nn.Conv2d(inside, boxes * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(x))
        return y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, self.values)


class SSDLite(nn.Module):
    """A detector: (n, 3, h, w) -> (codes (n, anchors, 4), logits (n, anchors, 1 + classes)).

    Codes are of boxes relative to the anchors (`boxes.decode`); the first logit is of the background, which training
    holds at nothing and detection drops. Raises `BadInput` for images of less than `LEAST` pixels a side.
    """

    def __init__(self, spec: NetSpec, classes: int = 90, in_chans: int = 3) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.classes = classes
        self.backbone = MobileDet(spec, in_chans)
        self.extra = nn.ModuleList()
        widths = [*self.backbone.widths, *EXTRA]
        for inside, out in zip(widths[1:], EXTRA, strict=False):
            half = out // 2
            self.extra.append(
                nn.Sequential(
                    SameConv(inside, half, **HEAD_NORM),
                    SameConv(half, half, 3, 2, half, **HEAD_NORM),
                    SameConv(half, out, **HEAD_NORM),
                )
            )
        pairs = list(zip(widths, BOXES, strict=True))
        self.codes = nn.ModuleList(Predictor(width, boxes, 4) for width, boxes in pairs)
        self.logits = nn.ModuleList(Predictor(width, boxes, 1 + classes) for width, boxes in pairs)
        self._initialise()

    def _initialise(self) -> None:
        """Deviation 0.03, as released, and logits that begin at `PRIOR_LOGIT`."""
        for part in (self.extra, self.codes, self.logits):
            for child in part.modules():
                if isinstance(child, nn.Conv2d):
                    nn.init.trunc_normal_(child.weight, std=0.03, a=-0.06, b=0.06)
                    if child.bias is not None:
                        nn.init.zeros_(child.bias)
        for predictor in self.logits:
            nn.init.constant_(cast(Tensor, cast(Predictor, predictor).project.bias), PRIOR_LOGIT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise BadInput(f"a detector was given {tuple(x.shape)}", f"images are (n, {self.in_chans}, height, width)")
        if not torch.compiler.is_compiling():
            check_size(int(x.shape[2]), int(x.shape[3]))
        if self.training and x.shape[0] == 1:
            raise BadInput("the batch norms of the last maps cannot train on one image", "train with two or more")
        maps = self.backbone(x)
        for layer in self.extra:
            maps.append(layer(maps[-1]))
        codes, logits = (
            torch.cat([predictor(x) for predictor, x in zip(predictors, maps, strict=True)], 1)
            for predictors in (self.codes, self.logits)
        )
        return codes, logits

    def native(self) -> NativeNet:
        """See `headway.core.module_model.native_forward`."""
        return NativeNet(self)


def check_size(height: int, width: int) -> None:
    """Raise `BadInput` for images that are too small."""
    if min(height, width) < LEAST:
        raise BadInput(f"images of {height}x{width} px are too small to detect in", f"give at least {LEAST} px a side")


def map_sizes(height: int, width: int) -> Sequence[tuple[int, int]]:
    """(height, width) of the six maps of an image."""
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in (16, 32, 64, 128, 256, 512)]
