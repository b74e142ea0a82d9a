"""Batch norm of a sub-network: its statistics estimated again, layer by layer, from batches of training images."""

from __future__ import annotations

import torch
from torch import nn

from headway.core.errors import BadInput
from headway.vision.search.images import FEWEST_RECALIBRATION, Split
from headway.vision.search.train import channels_last

BATCH = 200


@torch.no_grad()
def recalibrate(net: nn.Module, split: Split, images: int = 2000, noise: float = 0.0) -> nn.Module:
    """Average the statistics of batches of 200; every layer normalises by its own batch meanwhile. Gives the net.

    Raises `BadInput` for so few images that variances mean little.
    """
    count = min(images, len(split))
    if count < FEWEST_RECALIBRATION:
        raise BadInput(f"{count} images for batch norm", f"give at least {FEWEST_RECALIBRATION}")
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # an average over all batches
    net.train()
    generator = torch.Generator().manual_seed(0)
    for part in split.images[:count].split(BATCH):
        if len(part) > 1:
            extra = noise * torch.randn(part.shape, generator=generator) if noise else 0.0
            net(channels_last(part + extra))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return net.eval()
