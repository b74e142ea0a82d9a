"""A smaller network taught to give what the original gives, on views of the images that are at hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.module_workload import first_tensor
from headway.core.progress import Progress
from headway.training.distil import divergence
from headway.training.fit import Training, fit
from headway.vision.search.train import channels_last

WARM_UP = 10
SMALLEST = 0.5
"""Least side of a view, of the image's."""
LIGHT, TINT = 0.2, 0.1
"""Largest change of an image's contrast, and of a channel's brightness in standard deviations."""
MIXED = 0.5
"""Share of views that another one is laid over."""
BATCH = 32
"""Images that the teacher is asked at once for what is held out."""


@dataclass(frozen=True)
class Course:
    """How long and how fast."""

    steps: int
    batch: int
    lr: float
    temperature: float
    seed: int = 0


def views(images: Tensor, count: int) -> Tensor:
    """Random views of random images: a part, mirrored half the time, other light, half of them laid over one another.

    images: (n, channels, h, w) -> (count, channels, h, w), within the range of the images. By torch's generator.
    """
    x = images[torch.randint(len(images), (count,))]
    side = torch.empty(count).uniform_(SMALLEST, 1.0)
    shift = (1.0 - side)[:, None] * torch.empty(count, 2).uniform_(-1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = side * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    spread = float(images.std())
    x = x * torch.empty(count, 1, 1, 1).uniform_(1.0 - LIGHT, 1.0 + LIGHT)
    x = x + spread * torch.empty(count, x.shape[1], 1, 1).uniform_(-TINT, TINT)
    share = torch.where(torch.rand(count) < MIXED, torch.empty(count).uniform_(0.5, 1.0), torch.ones(count))
    share = share[:, None, None, None]
    x = share * x + (1.0 - share) * x[torch.randperm(count)]
    return x.clamp(float(images.min()), float(images.max()))


@torch.no_grad()
def apart(student: Callable[[Tensor], Any], teacher: Callable[[Tensor], Any], images: Tensor, task: str) -> float:
    """Mean divergence of the student's answers from the teacher's."""
    away, total = divergence(task), 0.0
    for batch in torch.split(images, BATCH):
        total += len(batch) * float(away(first_tensor(student(batch)).float(), first_tensor(teacher(batch)).float()))
    return total / len(images)


def distilled(
    network: nn.Module,
    teacher: Callable[[Tensor], Any],
    images: Tensor,
    task: str,
    course: Course,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> nn.Module:
    """`network`, trained in place down its divergence from the teacher on views of `images`; norms keep their
    statistics. With `checkpoint` it goes on where it was stopped, see `fit`.
    """
    student = cast(Any, _AsItRuns(network.requires_grad_(True))).to(memory_format=torch.channels_last)
    away = divergence(task, course.temperature)

    def lost(_: int) -> Tensor:
        x = views(images, course.batch)
        with torch.no_grad():
            wanted = first_tensor(teacher(x)).float()
        return away(first_tensor(student(channels_last(x))).float(), wanted)

    optimizer = torch.optim.Adam(student.parameters(), course.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * i / max(course.steps, 1)))
    )
    fit(
        Training(student, optimizer, schedule, clip=1.0),
        lost,
        course.steps,
        seed=course.seed,
        what="teaching the smaller network",
        progress=progress,
        checkpoint=checkpoint,
        every=25,
    )
    plain = cast(Any, network).to(memory_format=torch.contiguous_format)
    return cast(nn.Module, plain.requires_grad_(False).eval())


class _AsItRuns(nn.Module):
    """A network that trains in `eval`: norms keep the statistics of many images, which a small batch does not have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, x: Tensor) -> Any:
        return self.network(x)
