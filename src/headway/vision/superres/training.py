"""Training SESR on photographs: mean absolute error of luma, Adam with amsgrad; cached by what a result is made of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.progress import Progress
from headway.training.fit import Training, fit
from headway.vision.superres.network import CONFIGS, SESR
from headway.vision.superres.photos import NAMES, Pair, pairs, patches
from headway.vision.superres.planes import psnr, upscaled


@dataclass(frozen=True)
class Recipe:
    """The defaults fit minutes of one core; `published` gives the paper's."""

    steps: int = 2500
    batch: int = 16
    patch: int = 32
    """px of the small picture."""
    lr: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"


def published(scale: int) -> Recipe:
    """300 epochs of 64 patches of each of 800 pictures (DIV2K)."""
    return Recipe(800 * 64 // 32 * 300, 32, 64 if scale == 2 else 50, 2e-4, "constant")


def train(
    network: nn.Module,
    pictures: Sequence[Pair],
    scale: int,
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Train in place; gives the losses. Patches follow from the seed and the step, so a resumed run sees the same.

    Ends in `eval`.
    """
    if recipe.steps < 1:
        raise BadInput(f"steps={recipe.steps}", "train for at least one step")
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr, amsgrad=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda index: _share(recipe, index))
    draws = torch.Generator()

    def step(index: int) -> Tensor:
        draws.manual_seed(seed * 1_000_003 + index)
        small, large = patches(pictures, scale, recipe.batch, recipe.patch, draws)
        return F.l1_loss(network(small), large)

    training = Training(network, optimizer, schedule)
    losses = fit(training, step, recipe.steps, seed=seed, progress=progress, checkpoint=checkpoint, what="SESR")
    network.eval()
    return losses


def _share(recipe: Recipe, step: int) -> float:
    return 1.0 if recipe.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))


def begun(variant: str, scale: int, *, seed: int = 0, linear: bool = True, parent: SESR | None = None) -> SESR:
    """A network of fresh weights; all but the last layer from `parent`, the same variant trained for x2.

    linear: see `SESR`. Warns where a network for x4 gets no parent, which the paper gives it.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = SESR(CONFIGS[variant], scale, linear)
    if parent is not None:
        own = network.state_dict()
        network.load_state_dict(own | {k: v for k, v in parent.state_dict().items() if not k.startswith("last.")})
    elif scale == 4:
        warnings.warn("x4 is trained without a network for x2 to begin from: expect a lower PSNR", stacklevel=2)
    return network


def trained(
    variant: str,
    scale: int,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    linear: bool = True,
    cache: StepCache | None = None,
    progress: Progress | None = None,
) -> SESR:
    """The training form, trained on scikit-image's photographs or taken from the cache; x4 begins from a trained x2.

    Ctrl-C keeps what was trained: the next call goes on from there.
    """
    recipe = recipe or Recipe()
    cache = cache or StepCache()
    key = cache.key("sesr", variant, scale, asdict(recipe), seed, linear, NAMES["train"])
    checkpoint = cache.root.parent / "training" / f"sesr-{key[:32]}.pt"

    def build(folder: Path) -> None:
        parent = None
        if scale == 4:
            parent = trained(variant, 2, recipe, seed=seed, linear=linear, cache=cache, progress=progress)
        network = begun(variant, scale, seed=seed, linear=linear, parent=parent)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        train(network, pairs("train", scale), scale, recipe, seed=seed, progress=progress, checkpoint=checkpoint)
        save_file(network.state_dict(), folder / "weights.safetensors")
        checkpoint.unlink(missing_ok=True)

    network = SESR(CONFIGS[variant], scale, linear).eval()
    network.load_state_dict(load_file(cache.folder(key, build) / "weights.safetensors"))
    return network


def gains(network: nn.Module, pictures: Sequence[Pair], scale: int) -> list[tuple[float, float]]:
    """(PSNR of the network, PSNR of bicubic) of each picture, dB of luma without 2 x `scale` pixels at the border."""
    found = []
    network.eval()
    for pair in pictures:
        with torch.no_grad():
            ours = network(pair.small[None, None])[0, 0]
        plain = upscaled(pair.small.double(), scale).clamp(0.0, 1.0)
        found.append((psnr(ours, pair.large, 2 * scale), psnr(plain, pair.large, 2 * scale)))
    return found
