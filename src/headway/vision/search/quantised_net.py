"""Plain networks with bits for every convolution, and their short training (quantisation-aware, as APQ's release).

Weights: symmetric, one threshold a tensor. Inputs: clipped at a learned limit, signed where they come from a linear
bottleneck. Batch norm stays in floating point. Stem, fixed blocks, last convolution and classifier have 8 bits, the
image none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.progress import Progress
from headway.training.fit import Training, fit
from headway.vision.quantizers import Clipped, Symmetric
from headway.vision.search.blocks import MBConv, PlainNet
from headway.vision.search.images import Images
from headway.vision.search.train import channels_last

FIXED = 8
"""Bits of what is not searched."""
SEEN = 200
"""Images by which limits begin."""


@dataclass(frozen=True)
class BlockBits:
    """Bits of weights and inputs of a block's 1x1 convolutions (`pw`) and of its depthwise one (`dw`)."""

    pww: int
    pwa: int
    dww: int
    dwa: int


@dataclass(frozen=True)
class QatRecipe:
    """SGD with momentum under a cosine; the paper's: 30 epochs in batches of 256 at 1e-3."""

    epochs: float
    batch: int
    lr: float

    def steps(self, images: int) -> int:
        return max(1, round(self.epochs * images / self.batch))


class QuantisedConv(nn.Conv2d):
    """A convolution whose weight, and input where it has bits, are rounded."""

    def __init__(self, conv: nn.Conv2d, weight_bits: int, act_bits: int | None, signed: bool = True) -> None:
        """conv: its weight and bias are taken over."""
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        super().__init__(*shape, groups=conv.groups, bias=conv.bias is not None)  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.levels = Symmetric(weight_bits, conv.weight)
        self.clip = Clipped(act_bits, signed) if act_bits else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.clip(x), self.levels(self.weight), self.bias)


class QuantisedLinear(nn.Linear):
    """As `QuantisedConv`."""

    def __init__(self, linear: nn.Linear, weight_bits: int, act_bits: int, signed: bool) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight, self.bias = linear.weight, linear.bias
        self.levels = Symmetric(weight_bits, linear.weight)
        self.clip = Clipped(act_bits, signed)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.clip(x), self.levels(self.weight), self.bias)


Quantised = QuantisedConv | QuantisedLinear


def quantise(net: PlainNet, bits: Sequence[BlockBits]) -> PlainNet:
    """Give the last `len(bits)` blocks their bits, and all else 8; in place. Its ranges want `calibrate`."""
    layer: Any = net.stem
    layer.conv = QuantisedConv(layer.conv, FIXED, None)
    signed = not _rectifies(layer.act)
    fixed = len(net.blocks) - len(bits)
    for index, block in enumerate(net.blocks):
        _quantise_block(cast(MBConv, block), bits[index - fixed] if index >= fixed else BlockBits(*[FIXED] * 4), signed)
        signed = True
    if not isinstance(net.last, nn.Identity):
        layer = net.last
        layer.conv = QuantisedConv(layer.conv, FIXED, FIXED, signed)
        signed = not _rectifies(layer.act)
    head = net.head
    head.classifier = QuantisedLinear(head.classifier, FIXED, FIXED, signed)
    return net


def _quantise_block(block: MBConv, bits: BlockBits, signed: bool) -> None:
    if not isinstance(block.expand, nn.Identity):
        block.expand.conv = QuantisedConv(block.expand.conv, bits.pww, bits.pwa, signed)
        signed = not _rectifies(block.expand.act)
    block.depthwise.conv = QuantisedConv(block.depthwise.conv, bits.dww, bits.dwa, signed)
    block.project.conv = QuantisedConv(
        block.project.conv, bits.pww, bits.pwa, signed=not _rectifies(block.depthwise.act)
    )


def _rectifies(act: nn.Module) -> bool:
    return isinstance(act, (nn.ReLU, nn.ReLU6))


def quantised_layers(net: nn.Module) -> list[Quantised]:
    return [module for module in net.modules() if isinstance(module, (QuantisedConv, QuantisedLinear))]


@torch.no_grad()
def calibrate(net: nn.Module, images: Images) -> None:
    """Set all thresholds by the weights as they are, all limits by one batch of training images."""
    net.eval()
    seen = images.train.images[:SEEN]
    seen = seen + images.noise * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))

    def see(clip: Clipped, inputs: tuple[Tensor]) -> None:
        clip.see(inputs[0])

    hooks = []
    for layer in quantised_layers(net):
        layer.levels.see(layer.weight)
        if isinstance(layer.clip, Clipped):
            hooks.append(layer.clip.register_forward_pre_hook(partial(see)))
    try:
        net(channels_last(seen))
    finally:
        for hook in hooks:
            hook.remove()


def train_quantised(
    net: nn.Module,
    images: Images,
    recipe: QatRecipe,
    seed: int,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train a calibrated network in place; ends in `eval`."""
    steps = recipe.steps(len(images.train))
    optimizer = torch.optim.SGD(net.parameters(), recipe.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step(_: int) -> Tensor:
        x, y = images.batch(recipe.batch)
        return F.cross_entropy(net(channels_last(x)), y)

    fit(
        Training(net, optimizer, schedule, clip=5.0),
        step,
        steps,
        seed=seed,
        what="training with few bits",
        progress=progress,
        checkpoint=checkpoint,
    )
    net.eval()


def size_bytes(net: nn.Module) -> float:
    """Of the weights at their bits, and of all else as it is held; codes packed without gaps."""
    packed = {id(layer.weight): layer.levels.bits for layer in quantised_layers(net)}
    tensors = [*net.parameters(), *net.buffers()]
    return sum(t.numel() * (packed[id(t)] / 8 if id(t) in packed else t.element_size()) for t in tensors)
