"""AdamW over adapters (decoupled weight decay, arXiv 1711.05101), as torch.optim.AdamW counts it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from headway.core.errors import BadInput
from headway.training.lora import Adapters, Pair, Site


@dataclass(frozen=True)
class AdamWSettings:
    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise BadInput(f"a learning rate of {self.lr}", "it must be a positive number")


class AdamW:
    """Two moments for each value, in its own type (float32 while serving)."""

    def __init__(self, adapters: Adapters, settings: AdamWSettings) -> None:
        self.adapters, self.settings = adapters, settings
        self.steps = 0
        self.first = {site: pair.like() for site, pair in adapters.pairs.items()}
        self.second = {site: pair.like() for site, pair in adapters.pairs.items()}

    def step(self, gradients: Mapping[Site, Pair]) -> None:
        """Change the adapters in place by one step along their gradients."""
        s = self.settings
        self.steps += 1
        size = s.lr / (1.0 - s.beta1**self.steps)
        root = math.sqrt(1.0 - s.beta2**self.steps)
        for site, pair in self.adapters.pairs.items():
            for name in ("a", "b"):
                value, gradient = getattr(pair, name), getattr(gradients[site], name)
                first, second = getattr(self.first[site], name), getattr(self.second[site], name)
                value.mul_(1.0 - s.lr * s.weight_decay)
                first.lerp_(gradient, 1.0 - s.beta1)
                second.mul_(s.beta2).addcmul_(gradient, gradient, value=1.0 - s.beta2)
                value.addcdiv_(first, torch.sqrt(second).div_(root).add_(s.eps), value=-size)

    @property
    def nbytes(self) -> int:
        return 2 * self.adapters.nbytes
