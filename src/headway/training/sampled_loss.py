"""The loss of answers that a network draws itself: its gradients know what the true loss would feel, without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headway.core.module_workload import first_tensor
from headway.training.distil import DECIDES


def sampled_loss(output: Any, task: str, generator: torch.Generator) -> tuple[Tensor, int]:
    """A scalar whose gradient has the curvature of the task's loss as its second moment; and the losses summed in it.

    Language, classification: -ln p of a label drawn from the model's own distribution, whose curvature is the Fisher
    matrix. Any other output: a random projection over the output's norm, for the relative squared error.
    """
    values = first_tensor(output).float()
    if task in DECIDES:
        rows = values.reshape(-1, values.shape[-1])
        below = rows.detach().softmax(-1).cumsum(-1)  # far cheaper than torch.multinomial for a whole vocabulary
        drawn = torch.rand(len(rows), 1, generator=generator) * below[:, -1:]
        labels = torch.searchsorted(below, drawn)[:, 0].clamp_max(rows.shape[-1] - 1)
        return nn.functional.cross_entropy(rows, labels, reduction="sum"), len(rows)
    direction = torch.randn(values.shape, generator=generator)
    norms = values.detach().reshape(len(values), -1).norm(dim=1).clamp_min(1e-30)
    return (direction * values).reshape(len(values), -1).sum(1).div(norms).sum(), len(values)
