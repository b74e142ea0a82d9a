"""Training detectors on scenes, with the released losses, on `headway.training.fit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.core.errors import BadInput
from headway.core.progress import Progress
from headway.training.fit import Training, fit
from headway.vision.detection.boxes import anchors
from headway.vision.detection.detections import detect
from headway.vision.detection.nets import SSDLite, map_sizes
from headway.vision.detection.scenes import Scenes
from headway.vision.detection.score import Precision, average_precision
from headway.vision.detection.targets import Targets, detection_loss, targets
from headway.vision.train import Recipe, schedule_of


def train_detector(
    network: SSDLite,
    scenes: Scenes,
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train in place; gives the losses. Batches follow from the seed and the step. Ends in `eval`.

    Raises `BadInput` for a recipe that mixes or distils, and for scenes of other classes than the network's.
    """
    if recipe.mixup or recipe.distil or recipe.label_smoothing:
        raise BadInput("a detector is trained without mixup, distillation and label smoothing", "set them to 0")
    if scenes.classes != network.classes:
        raise BadInput(f"scenes of {scenes.classes} classes for {network.classes}", "make the network of as many")
    placed = anchors(map_sizes(scenes.size, scenes.size), scenes.size, scenes.size)
    wanted = targets(scenes.objects, placed, scenes.classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    draws = torch.Generator()

    def step(index: int) -> Tensor:
        draws.manual_seed(seed * 1_000_003 + index)
        chosen = torch.randint(len(scenes), (recipe.batch,), generator=draws)
        codes, logits = network(scenes.images[chosen])
        part = Targets(wanted.classes[chosen], wanted.codes[chosen], wanted.matched[chosen])
        by_class, by_box = detection_loss(codes, logits, part)
        return by_class + by_box

    losses = fit(
        Training(network, optimizer, schedule_of(optimizer, recipe), recipe.clip),
        step, recipe.steps, seed=seed, progress=progress, checkpoint=checkpoint, what="detector",
    )  # fmt: skip
    network.eval()
    return losses


def precision_of(network: Callable[[Tensor], Any], scenes: Scenes) -> Precision:
    """How well a detector in `eval`, or a MODEL of one, finds what is on scenes."""
    return average_precision(detect(network, scenes.images), scenes.objects, scenes.size, scenes.size)
