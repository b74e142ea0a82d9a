"""Accuracy predictors: small networks on the one-hot encoding of a genotype (Once-for-All, appendix; APQ)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

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
        return self.after(F.relu(self.layers[0](x)))

    def after(self, hidden: Tensor) -> Tensor:
        """What follows the first hidden layer: (n, 400) -> (n,)."""
        for layer in list(self.layers)[1:-1]:
            hidden = F.relu(layer(hidden))
        return self.layers[-1](hidden)[:, 0] * self.deviation + self.mean

    def see(self, y: Tensor) -> None:
        """Take the mean and the deviation of the labels."""
        self.mean, self.deviation = y.mean(), y.std().clamp(min=1e-6)


class TransferPredictor(nn.Module):
    """(n, width + extra) -> (n,) accuracy: a predictor of the first columns, and what the others add to it.

    They are added to its first hidden layer after the ReLU (APQ, section 3.3).
    """

    def __init__(self, base: AccuracyPredictor, extra: int) -> None:
        """base: trained; its weights are copied. What is new begins at random: from zeros it learns too slowly."""
        super().__init__()
        self.base = copy.deepcopy(base)
        self.added = nn.Linear(extra, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.base.layers[0]
        known = x.shape[1] - self.added.in_features
        return self.base.after(F.relu(first(x[:, :known])) + self.added(x[:, known:]))

    def see(self, y: Tensor) -> None:
        self.base.see(y)


Predictor = TypeVar("Predictor", AccuracyPredictor, TransferPredictor)


def fit_predictor(
    space: SearchSpace, genotypes: Sequence[Genotype], accuracies: Sequence[float], seed: int = 0, steps: int = 400
) -> AccuracyPredictor:
    """A new predictor trained on pairs of genotype and accuracy; many steps fit the noise of few labels."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = AccuracyPredictor(space.width)
    return tune_predictor(space, model, genotypes, accuracies, steps)


def tune_predictor(
    space: SearchSpace, model: Predictor, genotypes: Sequence[Genotype], accuracies: Sequence[float], steps: int = 400
) -> Predictor:
    """Train all weights in place on pairs of genotype and accuracy, all at once, with Adam."""
    x = torch.from_numpy(np.stack([space.encode(genotype) for genotype in genotypes]))
    y = torch.tensor(list(accuracies), dtype=torch.float32)
    model.see(y)
    deviation = y.std().clamp(min=1e-6)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        (((model(x) - y) / deviation) ** 2).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict(space: SearchSpace, model: nn.Module, genotypes: Sequence[Genotype]) -> npt.NDArray[np.float32]:
    """Accuracies of many genotypes in one call."""
    return np.asarray(model(torch.from_numpy(np.stack([space.encode(genotype) for genotype in genotypes]))))
