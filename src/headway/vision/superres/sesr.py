"""SESR (Bhardwaj et al. 2022, arXiv:2103.09404): super-resolution of luma by a plain chain of small convolutions.

    h0 = first(x - 1/2)                 5x5, 1 -> f
    h  = PReLU(block(h))                3x3, f -> f, m times, from h0
    y  = last(h + h0) + x               5x5, f -> s^2; x is added to each of the s^2 maps
    out = s^2 maps interleaved, clipped to [0, 1]

Training holds each convolution as a `LinearBlock`; `fold` makes plain ones of them.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from headway.vision.superres.linear_block import LinearBlock

SYSTEM = Card(
    slug="sesr",
    title="SESR",
    paper="arXiv:2103.09404",
    kind="model",
    slot="network",
    summary="a small plain network that doubles or quadruples pictures; trained wide, collapsed to narrow convolutions",
    claim="M5, x2: 13,520 weights, 3.11 G multiply-adds for 1280x720; PSNR of nets of 2 to 330 times the multiply-adds",
)


@dataclass(frozen=True)
class Config:
    """One variant."""

    blocks: int
    """Convolutions of 3x3: m."""
    features: int
    """Channels between convolutions: f."""
    wide: int
    """Channels inside a linear block."""


CONFIGS = {
    "m3": Config(3, 16, 256),
    "m5": Config(5, 16, 256),
    "m7": Config(7, 16, 256),
    "m11": Config(11, 16, 64),
    "xl": Config(11, 32, 64),
}
SCALES = (2, 4)


def check_scale(scale: int) -> int:
    """The scale; raises `BadInput` unless it is 2 or 4."""
    if scale not in SCALES:
        raise BadInput(f"scale={scale}", "choose 2 or 4")
    return scale


def depth_to_space(x: Tensor) -> Tensor:
    """(n, 4c, h, w) -> (n, c, 2h, 2w); channel (2i + j) c + k goes to row i, column j of map k, as in TensorFlow.

    `pixel_shuffle` reads channel 4k + 2i + j, which differs where c > 1, that is at the first of two.
    """
    return torch.pixel_shuffle(x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)


class SESR(nn.Module):
    """(n, 1, h, w) of luma in [0, 1] -> (n, 1, scale h, scale w); clipped in `eval`, not while training."""

    def __init__(self, config: Config, scale: int = 2, linear: bool = True) -> None:
        """linear: hold linear blocks; else plain convolutions, for a training without over-parameterisation."""
        super().__init__()
        self.scale = check_scale(scale)
        make = partial(LinearBlock, wide=config.wide) if linear else _convolution
        wide = config.features
        self.first = make(1, wide, 5)
        self.blocks = nn.ModuleList(make(wide, wide, 3) for _ in range(config.blocks))
        self.activations = nn.ModuleList(nn.PReLU(wide, init=0.0) for _ in range(config.blocks))
        self.last = make(wide, scale * scale, 5)

    @property
    def radius(self) -> int:
        """Pixels of the input, in each direction, that an output depends on."""
        return 2 + len(self.blocks) + 2

    def expanded(self) -> SESR:
        """Itself, with every linear block run as two convolutions."""
        for child in self.modules():
            if isinstance(child, LinearBlock):
                child.collapsed = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 1:
            raise BadInput(f"SESR was given {tuple(x.shape)}", "it takes luma, (n, 1, height, width)")
        start = h = self.first(x - 0.5)
        for block, activation in zip(self.blocks, self.activations, strict=True):
            h = activation(block(h))
        y = self.last(h + start) + x
        for _ in range(self.scale // 2):
            y = depth_to_space(y)
        return y if self.training else y.clamp(0.0, 1.0)


def _convolution(inside: int, out: int, kernel: int) -> nn.Conv2d:
    made = nn.Conv2d(inside, out, kernel, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(made.weight)
    return made


class SesrSettings(Settings):
    variant: Literal["m3", "m5", "m7", "m11", "xl"] = Field("m5", description="published size; paper, table 1")
    scale: Literal[2, 4] = Field(2, description="times the height and width")
    weights: str = Field(
        "", description="path of weights (.safetensors, .pth) of the training form or the folded one; empty: see steps"
    )
    height: int = Field(0, ge=0, le=8192, description="px; of the sample that is timed; 0: 720 / scale, paper, table 1")
    width: int = Field(0, ge=0, le=8192, description="px; of the sample that is timed; 0: 1280 / scale, paper, table 1")
    fold: bool = Field(True, description="the form for inference: every linear block as one convolution")


class Sesr(ModelFamily[SesrSettings]):
    card = SYSTEM
    settings = SesrSettings

    def network(self, settings: SesrSettings) -> SESR:
        """The training form: random weights, always the same, or those of the file the settings name."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return SESR(CONFIGS[settings.variant], settings.scale)

    def build(self, settings: SesrSettings) -> ModuleModel:
        """Raises `BadInput` for weights that do not fit."""
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
        shape: dict[str, Any] = settings.model_dump(exclude={"weights"})
        shape["height"] = settings.height or 720 // settings.scale
        shape["width"] = settings.width or 1280 // settings.scale
        return ModuleModel(
            made,
            ramp(shape["height"], shape["width"]),
            name=f"{SYSTEM.slug}-{settings.variant}-x{settings.scale}",
            task="module",
            origin=Origin("family", str(Step(SYSTEM.slug, shape))),
        )


def ramp(height: int, width: int) -> Tensor:
    """A smooth made-up luma plane, (1, 1, height, width): for shapes and timings, where no picture is at hand."""
    rows, columns = torch.linspace(0.0, 9.0, height)[:, None], torch.linspace(0.0, 16.0, width)[None]
    return (0.5 + 0.4 * torch.sin(rows) * torch.cos(columns))[None, None]
