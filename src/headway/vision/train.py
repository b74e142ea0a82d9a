"""Training classifiers of images: one recipe with few knobs on `headway.training.fit`.

The published recipes of the families are given by `published`; augmentation that changes pictures (RandAugment, cutmix)
belongs to whoever makes the batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.progress import Progress
from headway.training.fit import Training, fit
from headway.vision.lab import Pictures


@dataclass(frozen=True)
class Recipe:
    """AdamW with a schedule over all steps."""

    steps: int = 200
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.02
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    warmup: float = 0.0
    """Share of the steps in which a cosine schedule rises; one-cycle rises in the first 30 %."""
    least_lr: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Parameter of the beta distribution of the share of a second picture; 0: none."""
    clip: float | None = None
    """Largest norm of all gradients."""
    distil: float = 0.0
    """Share of the loss that a teacher's logits have."""
    temperature: float = 1.0


def published(family: str, variant: str) -> Recipe:
    """What the authors trained 300 epochs of ImageNet with, as far as it is no augmentation; without its steps.

    Adaptive gradient clipping (shvit, 0.02) and averages of weights are left out. Raises `BadInput` for another family.
    """
    if family == "shvit":
        decay = {"s1": 0.025, "s2": 0.032, "s3": 0.035, "s4": 0.03}[variant]
        return Recipe(0, 2048, 1e-3, decay, "cosine", 5 / 300, 1e-5, 0.1, mixup=0.8)
    if family == "efficientmod":
        return Recipe(0, 2048, 4e-3, 0.05, "cosine", 5 / 300, 1e-5, 0.1, mixup=0.8, distil=0.5)
    if family == "patnet":
        large = variant in ("m", "l")
        decay, mixup = _PATNET[variant]
        clip = {"m": 1.0, "l": 0.01}.get(variant)
        rate, batch = (2e-3, 2048) if large else (4e-3, 4096)
        return Recipe(0, batch, rate, decay, "cosine", 20 / 300, 1e-5, 0.1, mixup, clip)
    raise BadInput(f"no published recipe of {family!r} is known", "give one of shvit, efficientmod, patnet")


_PATNET = {
    "t0": (0.005, 0.05), "t1": (0.01, 0.1), "t2": (0.02, 0.1), "s": (0.03, 0.3), "m": (0.05, 0.5), "l": (0.05, 0.7),
}  # fmt: skip
"""Weight decay and mixup of each variant; the released configuration files."""


def train(
    network: nn.Module,
    pictures: Pictures,
    recipe: Recipe,
    *,
    seed: int = 0,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train in place; gives the losses. Batches follow from the seed and the step, so a resumed run sees the same.

    Ends in `eval`. Raises `BadInput` for a share of distillation without a teacher.
    """
    if recipe.distil and teacher is None:
        raise BadInput(f"distil={recipe.distil} without a teacher", "give a teacher or distil=0")
    if recipe.steps < 1:
        raise BadInput(f"steps={recipe.steps}", "train for at least one step")
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    training = Training(network, optimizer, schedule_of(optimizer, recipe), recipe.clip)
    draws = torch.Generator()

    def step(index: int) -> Tensor:
        draws.manual_seed(seed * 1_000_003 + index)
        images, labels = pictures.batch(recipe.batch, draws)
        target = F.one_hot(labels, pictures.classes).to(images.dtype)
        if recipe.mixup:
            share = float(torch.distributions.Beta(recipe.mixup, recipe.mixup).sample())
            images = share * images + (1 - share) * images.flip(0)
            target = share * target + (1 - share) * target.flip(0)
        return _loss(network(images), target, images, recipe, teacher)

    losses = fit(
        training, step, recipe.steps, seed=seed, progress=progress, checkpoint=checkpoint, what=type(network).__name__
    )
    network.eval()
    return losses


def _loss(
    output: Tensor | tuple[Tensor, Tensor], target: Tensor, images: Tensor, recipe: Recipe, teacher: nn.Module | None
) -> Tensor:
    """Cross-entropy, and the divergence from a teacher; of two heads the second learns from the teacher alone."""
    labels, taught = output if isinstance(output, tuple) else (output, output)
    loss = F.cross_entropy(labels, target, label_smoothing=recipe.label_smoothing)
    if teacher is None or not recipe.distil:
        return loss
    with torch.no_grad():
        wanted = F.log_softmax(teacher(images) / recipe.temperature, -1)
    found = F.log_softmax(taught / recipe.temperature, -1)
    divergence = F.kl_div(found, wanted, reduction="batchmean", log_target=True) * recipe.temperature**2
    return (1 - recipe.distil) * loss + recipe.distil * divergence


def schedule_of(optimizer: torch.optim.Optimizer, recipe: Recipe) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate that a recipe asks for, step by step."""
    if recipe.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps + 1)
    rise = round(recipe.warmup * recipe.steps)
    least = recipe.least_lr / recipe.lr

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, recipe.steps - rise)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def accuracy(network: nn.Module, pictures: Pictures, batch: int = 256) -> float:
    """Share of pictures whose class the network, in `eval`, ranks first."""
    was = network.training
    network.eval()
    with torch.no_grad():
        right = sum(
            int((network(images).argmax(-1) == labels).sum())
            for images, labels in zip(pictures.images.split(batch), pictures.labels.split(batch), strict=True)
        )
    network.train(was)
    return right / len(pictures)


def scaled(recipe: Recipe, steps: int, batch: int) -> Recipe:
    """A published recipe for other data: the learning rate follows the batch."""
    return replace(recipe, steps=steps, batch=batch, lr=recipe.lr * batch / recipe.batch)
