"""A small convolutional network that weight systems are tried on, inputs to calibrate it with, and a machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from headway.core.module_model import ModuleModel
from headway.core.system import Context


class Net(nn.Module):
    """A 1x1 convolution, a spatial one, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(20, 48, 1)
        self.space = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.hidden = nn.Linear(48, 70)
        self.out = nn.Linear(70, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.space(torch.relu(self.mix(x))))
        return self.out(torch.relu(self.hidden(x.mean((2, 3)))))


def small_model() -> ModuleModel:
    torch.manual_seed(0)
    return ModuleModel(Net(), torch.randn(2, 20, 6, 6))


def context(**more: Any) -> Context:
    generator = torch.Generator().manual_seed(1)
    inputs = [(torch.randn(4, 20, 6, 6, generator=generator),) for _ in range(4)]
    return Context(target=None, calibration=inputs, **more)  # type: ignore[arg-type]
