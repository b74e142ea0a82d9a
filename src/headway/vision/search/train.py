"""A plain network trained on a set of images, once: what came out is kept by content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.cache import StepCache
from headway.core.progress import Progress
from headway.training.fit import Training, fit
from headway.vision.search.blocks import NetSpec
from headway.vision.search.images import Images, Split


@dataclass(frozen=True)
class TrainRecipe:
    """SGD with Nesterov momentum under a one-cycle schedule. The defaults are those of the space D400."""

    steps: int = 200
    batch: int = 48
    lr: float = 0.15
    warmup: float = 0.2
    """Share of the steps before the peak."""
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Trained:
    """A network after training, with its accuracies in [0, 1]."""

    module: nn.Module
    valid: float
    test: float


def optimizer(
    module: nn.Module, recipe: TrainRecipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    made = torch.optim.SGD(
        module.parameters(), recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(made, recipe.lr, total_steps=recipe.steps, pct_start=recipe.warmup)
    return made, schedule


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`build()` with torch's random numbers of `seed`, channels last (twice as fast on a CPU for these networks)."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = build()
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(
    spec: NetSpec,
    images: Images,
    recipe: TrainRecipe,
    seed: int,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """Train from scratch."""
    module = seeded(spec.build, seed)
    made, schedule = optimizer(module, recipe)

    def step(_: int) -> Tensor:
        x, y = images.batch(recipe.batch)
        return F.cross_entropy(module(channels_last(x)), y, label_smoothing=recipe.label_smoothing)

    fit(
        Training(module, made, schedule),
        step,
        recipe.steps,
        seed=seed,
        what="training",
        progress=progress,
        checkpoint=checkpoint,
    )
    module.eval()
    return Trained(module, accuracy(module, images.valid), accuracy(module, images.test))


def key(spec: NetSpec, images: Images, recipe: TrainRecipe, seed: int) -> str:
    """Under what the step cache holds a training."""
    return StepCache.key("search-training", asdict(spec), images.digest, asdict(recipe), seed)


def trained(
    spec: NetSpec,
    images: Images,
    recipe: TrainRecipe,
    seed: int,
    cache: StepCache,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Trained:
    """`train`, once."""

    def build() -> dict[str, np.ndarray]:
        done = train(spec, images, recipe, seed, progress, checkpoint)
        state = {f"tensor:{name}": value.numpy() for name, value in done.module.state_dict().items()}
        return {**state, "valid": np.float64(done.valid), "test": np.float64(done.test)}

    held = cache.arrays(key(spec, images, recipe, seed), build)
    module = spec.build()
    tensors = {name[7:]: torch.from_numpy(value) for name, value in held.items() if name.startswith("tensor:")}
    module.load_state_dict(tensors)
    return Trained(
        module.to(memory_format=torch.channels_last).eval(),  # type: ignore[call-overload]
        held["valid"].item(),
        held["test"].item(),
    )


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(module: nn.Module, split: Split, batch: int = 500) -> float:
    """Share of a split's images that the module, as it is, names rightly."""
    right = 0
    for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
        right += int((module(channels_last(images)).argmax(1) == labels).sum())
    return right / len(split)
