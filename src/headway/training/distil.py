"""How far a network is from its teacher: the loss of distillation, and what held-out inputs are judged by."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

DECIDES = ("language", "classification")
"""Tasks whose answers are logits."""


def divergence(task: str, temperature: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """(found, wanted) -> a number: KL(wanted || found) of a position where answers are logits, else the relative
    squared error.

    temperature: both distributions are softened by it, and gradients kept at their size (Hinton et al. 2015).
    """
    if task in DECIDES:
        return lambda found, wanted: (
            temperature**2
            * F.kl_div(
                (found / temperature).log_softmax(-1).flatten(0, -2),
                (wanted / temperature).log_softmax(-1).flatten(0, -2),
                log_target=True,
                reduction="batchmean",
            )
        )
    return lambda found, wanted: (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)
