"""Boxes for tests."""

from __future__ import annotations

import torch


def random_boxes(count: int, seed: int, least: float = 0.01) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    sides = least + (0.8 - least) * torch.rand(count, 2, generator=random)
    corner = torch.rand(count, 2, generator=random) * (1 - sides)
    return torch.cat([corner, corner + sides], 1)
