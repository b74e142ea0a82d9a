"""An accuracy predictor: a small network on the one-hot encoding of a genotype (Once-for-All, appendix)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.vision.search.space import Genotype, SearchSpace

HIDDEN = 400


class AccuracyPredictor(nn.Module):
    """(n, width) one-hot -> (n,) accuracy: three hidden layers of 400 and a constant, the mean of the labels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, HIDDEN, HIDDEN, HIDDEN, 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.layers)[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)[:, 0] * self.deviation + self.mean


def fit_predictor(
    space: SearchSpace, genotypes: Sequence[Genotype], accuracies: Sequence[float], seed: int = 0, steps: int = 400
) -> AccuracyPredictor:
    """Train on pairs of genotype and accuracy, all at once, with Adam."""
    x = torch.from_numpy(np.stack([space.encode(genotype) for genotype in genotypes]))
    y = torch.tensor(list(accuracies), dtype=torch.float32)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = AccuracyPredictor(space.width)
    model.mean, model.deviation = y.mean(), y.std().clamp(min=1e-6)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        (((model(x) - y) / model.deviation) ** 2).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict(space: SearchSpace, model: nn.Module, genotypes: Sequence[Genotype]) -> npt.NDArray[np.float32]:
    """Accuracies of many genotypes in one call."""
    return np.asarray(model(torch.from_numpy(np.stack([space.encode(genotype) for genotype in genotypes]))))
