"""Networks that tests of saved modules build by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Mixed(nn.Module):
    """Tied weights, two kinds of buffers, a memory format, and a sample with more than tensors in it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, width)
        self.up = nn.Linear(width, 12)
        self.conv = nn.Conv2d(1, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("window", torch.hann_window(12), persistent=False)

    def forward(self, ids: Tensor, options: dict[str, Any]) -> Tensor:
        x = self.tokens(ids)
        image = self.norm(self.conv((self.up(x) * self.window)[:, None])).mean((1, 3))
        return self.head(x) * options["scale"] + image[..., None]


def build() -> Mixed:
    """A network with other values than any saved one."""
    return Mixed()


def build_with_sample() -> tuple[Mixed, tuple[Any, ...]]:
    return Mixed(), (torch.tensor([[1]]), {"scale": 1.0})


def build_nothing() -> int:
    return 3
