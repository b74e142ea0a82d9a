"""SESR (Bhardwaj et al. 2022, arXiv:2103.09404): super-resolution of luma by a plain chain of small convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.module_origin import Origin
from headway.core.recipe import Step
from headway.core.system import ModelFamily, Settings
from headway.vision.checkpoint import fill, read_checkpoint
from headway.vision.fold import fold
from headway.vision.superres.network import CONFIGS, SESR
from headway.vision.superres.photos import upscaling_workload
from headway.vision.superres.quantised import Quantised, quantised
from headway.vision.superres.tiles import Tiled
from headway.vision.superres.training import Recipe, trained

SYSTEM = Card(
    slug="sesr",
    title="SESR",
    paper="arXiv:2103.09404",
    kind="model",
    slot="network",
    summary="a small plain network that doubles or quadruples pictures; trained wide, collapsed to narrow convolutions",
    claim="M5, x2: 13,520 weights, 3.11 G multiply-adds for 1280x720; PSNR of nets of 2 to 330 times the multiply-adds",
)


class SesrSettings(Settings):
    variant: Literal["m3", "m5", "m7", "m11", "xl"] = Field("m5", description="published size")
    scale: Literal[2, 4] = Field(2, description="times the height and width")
    weights: str = Field(
        "", description="path of weights (.safetensors, .pth) of the training form or the folded one; empty: see steps"
    )
    steps: int = Field(
        0,
        ge=0,
        description="steps of training on scikit-image's photographs, cached; 0: random weights, always the same",
    )
    lr: float = Field(
        5e-4, gt=0, description="learning rate at the first step, falling as a cosine; paper: 2e-4, constant"
    )
    batch: int = Field(16, ge=1, description="patches in a step of training; paper: 32")
    patch_lr: int = Field(32, ge=8, le=64, description="px; side of a small patch; paper: 64 for x2, 50 for x4")
    int8: bool = Field(False, description="weights and values between layers in 8 bits, simulated; ranges are learned")
    tile: int = Field(0, ge=0, le=4096, description="px; side of the tiles that run one by one; 0: the whole picture")
    height: int = Field(
        0, ge=0, le=8192, description="px; of the sample that is timed; 0: 720 / scale, as in the paper"
    )
    width: int = Field(
        0, ge=0, le=8192, description="px; of the sample that is timed; 0: 1280 / scale, as in the paper"
    )
    fold: bool = Field(True, description="the form for inference: every linear block as one convolution")


TRAINING = ("steps", "lr", "batch", "patch_lr")
"""Settings that shape no network."""


class Sesr(ModelFamily[SesrSettings]):
    card = SYSTEM
    settings = SesrSettings

    def network(self, settings: SesrSettings) -> SESR | Quantised:
        """The training form: trained, where the settings say so, or of random weights, always the same."""
        if settings.steps:
            recipe = Recipe(settings.steps, settings.batch, settings.patch_lr, settings.lr)
            return (quantised if settings.int8 else trained)(settings.variant, settings.scale, recipe)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network = SESR(CONFIGS[settings.variant], settings.scale)
        return Quantised(network) if settings.int8 else network

    def build(self, settings: SesrSettings) -> ModuleModel:
        """Raises `BadInput` for weights that do not fit, or that would be trained over."""
        if settings.weights and settings.steps:
            raise BadInput("sesr: both weights and steps", "give the weights, or train by steps")
        network: nn.Module = self.network(settings)
        if settings.weights:
            state = read_checkpoint(settings.weights)
            short = not any(".expand." in name for name in state)
            network = fold(network) if short else network
            fill(network, state, settings.weights)
        return self.model(network, settings)

    def model(self, network: nn.Module, settings: SesrSettings) -> ModuleModel:
        """A network of these settings, trained or not, as a MODEL."""
        made = fold(network) if settings.fold else network
        made = Tiled(made, settings.tile) if settings.tile else made
        shape: dict[str, Any] = settings.model_dump(exclude={"weights", *TRAINING})
        shape["height"] = settings.height or 720 // settings.scale
        shape["width"] = settings.width or 1280 // settings.scale
        return ModuleModel(
            made,
            ramp(shape["height"], shape["width"]),
            name=f"{SYSTEM.slug}-{settings.variant}-x{settings.scale}",
            task="image",
            origin=Origin("family", str(Step(SYSTEM.slug, shape))),
            workload=partial(upscaling_workload, scale=settings.scale, height=shape["height"], width=shape["width"]),
        )


def ramp(height: int, width: int) -> Tensor:
    """A smooth made-up luma plane, (1, 1, height, width): for shapes and timings, where no picture is at hand."""
    rows, columns = torch.linspace(0.0, 9.0, height)[:, None], torch.linspace(0.0, 16.0, width)[None]
    return (0.5 + 0.4 * torch.sin(rows) * torch.cos(columns))[None, None]
