"""DynamicVis (2025, arXiv:2503.16426): a pyramid whose blocks mix only the important tokens, with a Mamba both ways.

Names in official checkpoints (KyanChen/DynamicVis), behind `backbone.` where there is a classifier, and here:

    pos_embed                                       stages.0.position, (1, tokens, c) there and (1, c, h, w) here
    layers.I.0.projection, layers.I.0.norm          stages.I.patch, stages.I.patch_norm
    layers.I.1.D.spatial_gate                       stages.I.blocks.D.selector.router
    layers.I.1.D.spatial_mamba_mixer.pre_norm       stages.I.blocks.D.mixer.norm
    layers.I.1.D.spatial_mamba_mixer.mamba_layer    stages.I.blocks.D.mixer.mamba
    layers.I.2                                      stages.I.norm
    post_meanpool_norm, head.fc                     head.norm, head.fc

Both directions of a mixer share its weights. What works on each token alone (norm, first projection) is then the same
for both, and the last projection may as well project their sum: it is computed once here, twice in the released code
(`mixer=TwicePassed`), with the same result.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.vision.backbones.base import Backbone, BackboneFamily, BackboneSettings
from headway.vision.backbones.selective_scan import causal_filter, selective_scan
from headway.vision.backbones.token_selector import Selection, TokenSelector

SYSTEM = Card(
    slug="dynamicvis",
    title="DynamicVis",
    paper="arXiv:2503.16426",
    kind="model",
    slot="network",
    summary="a four-stage image backbone for large images: a bidirectional Mamba on the important tokens only",
    claim="at 2048x2048: 97 ms and 833 MB of GPU memory, 6 % and 3 % of ViT's",
)

KERNELS, STRIDES = (7, 3, 3, 3), (4, 2, 2, 2)
"""Of the convolutions before each stage."""
KEEP = (8, 4, 2, 1)
"""One token in so many is mixed, per stage."""
TAPS = 4
"""Tokens that Mamba's convolution sees."""


@dataclass(frozen=True)
class Config:
    """One variant."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    keep: tuple[int, ...] = KEEP
    """0: no router, all tokens are mixed."""
    state: int = 16
    """Values of the scan's state per channel."""
    gumbel_scale: float = 0.1
    """Scale of the noise on the router's scores while training."""
    tile: int = 0
    """Tokens whose states the scan holds at once while it learns; 0: chosen by width."""


CONFIGS = {
    "b": Config((96, 192, 384, 768), (2, 4, 16, 4)),
    "l": Config((128, 256, 512, 1024), (2, 4, 32, 4)),
}


class CausalConv(nn.Conv1d):
    """A filter of each channel over its last `TAPS` tokens, and SiLU: (batch, tokens, width) -> the same shape.

    reverse: over the next ones, with the weights in the same order away from the token.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width, TAPS, groups=width)

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        return causal_filter(x, self.weight[:, 0], self.bias, silu=True, reverse=reverse)


class Mamba(nn.Module):
    """The mixer of Mamba, of twice the width inside: (batch, tokens, channels) -> the same shape."""

    def __init__(self, channels: int, state: int = 16, tile: int = 0) -> None:
        super().__init__()
        width = 2 * channels
        self.rank, self.state, self.tile = math.ceil(channels / 16), state, tile
        self.in_proj = nn.Linear(channels, 2 * width, bias=False)
        self.conv1d = CausalConv(width)
        self.x_proj = nn.Linear(width, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, width)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, channels, bias=False)
        # So that steps begin log-uniform in [0.001, 0.1].
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        steps = torch.exp(torch.empty(width).uniform_(math.log(0.001), math.log(0.1)))
        self.dt_proj.bias.data = steps + torch.log(-torch.expm1(-steps))

    def scan(self, a: Tensor, reverse: bool = False, added: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """(batch, tokens, width) -> the same shape: convolution and recurrence in one direction, added to, gated."""
        a = self.conv1d(a, reverse)
        dt, b, c = self.x_proj(a).split([self.rank, self.state, self.state], -1)
        return selective_scan(
            a, self.dt_proj(dt), -torch.exp(self.A_log.float()), b, c, self.D,
            added=added, gate=gate, softplus=True, reverse=reverse, tile=self.tile,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        a, z = self.in_proj(x).chunk(2, -1)
        y: Tensor = self.out_proj(self.scan(a, gate=z))
        return y

    def both_ways(self, x: Tensor) -> Tensor:
        """The sum of `forward` and of `forward` on the flipped sequence, flipped back."""
        a, z = self.in_proj(x).chunk(2, -1)
        y: Tensor = self.out_proj(self.scan(a, reverse=True, added=self.scan(a), gate=z))
        return y


class BiMamba(nn.Module):
    """Mamba in both directions, with one set of weights, added to its input: (batch, tokens, channels) -> the same."""

    def __init__(self, channels: int, state: int = 16, tile: int = 0) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=1e-5)
        self.mamba = Mamba(channels, state, tile)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return x.add(self.mamba.both_ways(normed), alpha=0.5)

    def attention_macs(self, x: Tensor) -> int:
        """Multiply-adds of the two scans, three per value of a state: decay, input, output."""
        return 2 * x.shape[0] * x.shape[1] * 3 * self.mamba.A_log.numel()


class TwicePassed(BiMamba):
    """As released: the sequence and its flipped copy, as a batch, through all of Mamba."""

    def forward(self, x: Tensor) -> Tensor:
        both: Tensor = self.mamba(self.norm(torch.cat([x, x.flip(1)])))
        there, back = both.chunk(2)
        return x + 0.5 * (there + back.flip(1))

    def extra_repr(self) -> str:
        return "as released"


Mixer = Callable[[int, int, int], nn.Module]
"""(channels, state, tile) -> what mixes tokens, its residual included."""


class SpatialSparseMixer(nn.Module):
    """Mixes the selected tokens behind means of all: (batch, tokens, channels) -> the same shape.

    reduction: one token in so many is selected; 0: all are mixed, without a router. means: how many, each over
    neighbouring tokens.
    """

    def __init__(self, channels: int, reduction: int, means: int, config: Config, mixer: Mixer) -> None:
        super().__init__()
        self.means = means
        self.selector = TokenSelector(channels, reduction, config.gumbel_scale) if reduction else None
        self.mixer = mixer(channels, config.state, config.tile)

    def forward(self, x: Tensor) -> Tensor:
        if self.selector is None:
            return self._mixed(x, x)
        selection: Selection = self.selector(x)
        return selection.scatter(x, self._mixed(x, selection.gather(x)))

    def _mixed(self, x: Tensor, selected: Tensor) -> Tensor:
        means = pooled(x, min(self.means, x.shape[1]))
        mixed: Tensor = self.mixer(torch.cat([means, selected], 1))
        return mixed[:, means.shape[1] :]


def pooled(x: Tensor, count: int) -> Tensor:
    """(batch, tokens, channels) -> (batch, count, channels): means of neighbours, as in adaptive average pooling."""
    if x.shape[1] % count == 0:
        return x.reshape(x.shape[0], count, -1, x.shape[2]).mean(2)
    return F.adaptive_avg_pool1d(x.transpose(1, 2), count).transpose(1, 2)


class Stage(nn.Module):
    """(batch, inside, h, w) -> (batch, out, h / stride, w / stride), rounded up.

    grid: height and width of the map that the network is made for.
    """

    def __init__(self, index: int, inside: int, grid: tuple[int, int], config: Config, mixer: Mixer) -> None:
        super().__init__()
        out, kernel = config.widths[index], KERNELS[index]
        self.patch = nn.Conv2d(inside, out, kernel, STRIDES[index], kernel // 2)
        nn.init.kaiming_normal_(self.patch.weight, nonlinearity="linear")
        assert self.patch.bias is not None
        nn.init.zeros_(self.patch.bias)
        self.patch_norm = nn.LayerNorm(out, eps=1e-6)
        self.position = None if index else nn.Parameter(torch.zeros(1, out, *grid))
        self.blocks = nn.Sequential(
            *(SpatialSparseMixer(out, config.keep[index], grid[0], config, mixer) for _ in range(config.depths[index]))
        )
        self.norm = nn.LayerNorm(out, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x.contiguous(memory_format=torch.channels_last))
        grid = (x.shape[2], x.shape[3])
        x = self.patch_norm(x.flatten(2).transpose(1, 2))
        if self.position is not None:
            x = x + resized(self.position, grid).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(x))
        return x.transpose(1, 2).reshape(x.shape[0], -1, *grid)


def resized(position: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, channels, h, w) -> (1, channels, *grid), bicubic."""
    if tuple(position.shape[2:]) == grid:
        return position
    return F.interpolate(position, grid, mode="bicubic", align_corners=False)


class DynamicVis(Backbone):
    """See `Backbone`. image_size: side, or height and width, of the images that it is made for; it takes others too."""

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        in_chans: int = 3,
        image_size: int | tuple[int, int] = 512,
        mixer: Mixer = BiMamba,
    ) -> None:
        strides = [math.prod(STRIDES[: index + 1]) for index in range(len(config.widths))]
        super().__init__(num_classes, in_chans, config.widths, strides)
        self.keep = config.keep
        if not len(config.widths) == len(config.depths) == len(config.keep) <= len(STRIDES):
            raise BadInput(
                f"{len(config.widths)} widths, {len(config.depths)} depths and keep of {len(config.keep)} stages",
                f"give each as many, {len(STRIDES)} at most",
            )
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.check_size(height, width)
        self.stem = nn.Identity()
        made = []
        for index, inside in enumerate((in_chans, *config.widths[:-1])):
            height, width = -(-height // STRIDES[index]), -(-width // STRIDES[index])
            made.append(Stage(index, inside, (height, width), config, mixer))
        self.stages = nn.Sequential(*made)
        self.head = self.make_head(num_classes)

    def make_head(self, num_classes: int) -> nn.Module:
        parts: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.LayerNorm(self.num_features, eps=1e-6))
        if num_classes:
            parts["fc"] = nn.Linear(self.num_features, num_classes)
            nn.init.normal_(parts["fc"].weight, std=0.01)  # type: ignore[arg-type]
        return nn.Sequential(parts)

    def check_size(self, height: int, width: int) -> None:
        for keep, info in zip(self.keep, self.feature_info, strict=True):
            stride = int(str(info["reduction"]))
            tokens = -(-height // stride) * -(-width // stride)
            if tokens < max(keep, 1):
                raise BadInput(
                    f"an image of {height}x{width} has {tokens} tokens at stride {stride}, of which one in {keep} "
                    "would be mixed",
                    "give larger images, or 0 in `keep` for no selection",
                )

    def no_weight_decay(self) -> set[str]:
        kept = ("position", "A_log", ".D", "dt_proj.bias")
        return {name for name, _ in self.named_parameters() if name.endswith(kept)}


class DynamicvisSettings(BackboneSettings):
    variant: Literal["b", "l"] = Field("b", description="published size; released code")
    keep: tuple[int, ...] = Field(
        KEEP, min_length=4, max_length=4,
        description="per stage: one token in so many passes the mixer; 0: all of them, without a router; released code",
    )  # fmt: skip
    gumbel_scale: float = Field(
        0.1, ge=0.0, le=10.0, description="scale of the noise on the router's scores while training; released code"
    )
    state: int = Field(16, ge=1, le=256, description="values of the scan's state per channel; released code")
    in_channels: int = Field(3, ge=1, le=64, description="bands of the images; weights are for 3")
    out: Literal["avg", "featmap"] = Field("avg", description="classes of pooled features, or the last map as it is")
    tile_tokens: int = Field(
        0,
        ge=0,
        le=65536,
        description="tokens whose states the scan holds at once while it learns; 0: as many as fit a core's cache",
    )


class Dynamicvis(BackboneFamily[DynamicvisSettings]):
    card = SYSTEM
    settings = DynamicvisSettings

    classifier = ("head.fc.",)
    timm_classifier = "head.fc"

    def variant(self, name: str, **arguments: Any) -> DynamicVis:
        return DynamicVis(CONFIGS[name], **arguments)

    def network(self, settings: DynamicvisSettings) -> DynamicVis:
        table = CONFIGS[settings.variant]
        config = Config(
            table.widths,
            table.depths,
            tuple(settings.keep),
            settings.state,
            settings.gumbel_scale,
            settings.tile_tokens,
        )
        if min(config.keep) < 0:
            raise BadInput(f"keep={list(config.keep)}", "give one in how many tokens, per stage; 0 for no selection")
        size = settings.image_size or self.image_size(settings)
        made = DynamicVis(config, settings.num_classes, settings.in_channels, size)
        if settings.out == "featmap":
            made.reset_classifier(0, "")
        return made

    def image_size(self, settings: DynamicvisSettings) -> int:
        return 512

    def ours(self, state: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
        """A position embedding of another size is resized; routers are left out where the network has none.

        What else a pre-trained checkpoint holds (pyramid, region head) is dropped; a head that it lacks is untrained.
        """
        own = network.state_dict()
        found = {}
        for name, value in state.items():
            here = checkpoint_name(name)
            if here is None or (".selector." in here and here not in own) or (_is_head(here) and here not in own):
                continue
            found[here] = _position(value, own[here]) if here == "stages.0.position" and here in own else value
        lacking = [name for name in own if _is_head(name) and name not in found]
        if lacking:
            warnings.warn(f"the checkpoint has no {', '.join(lacking)}: left untrained", stacklevel=2)
        return found | {name: own[name] for name in lacking}


def _is_head(name: str) -> bool:
    return name.startswith("head.")


def _position(value: Tensor, own: Tensor) -> Tensor:
    """(1, tokens, channels) of a checkpoint as (1, channels, h, w) on the grid of `own`."""
    grid = (int(own.shape[2]), int(own.shape[3]))
    tokens, channels = int(value.shape[1]), int(value.shape[2])
    side = math.isqrt(tokens)
    if tokens != math.prod(grid) and side * side != tokens:
        raise BadInput(
            f"a position embedding of {tokens} tokens is of no square image", "build the network for its image size"
        )
    held = grid if tokens == math.prod(grid) else (side, side)
    return resized(value.transpose(1, 2).reshape(1, channels, *held), grid)


_PLACES = {
    "0.projection": "patch", "0.norm": "patch_norm", "2": "norm",
    "spatial_gate": "selector.router", "spatial_mamba_mixer.pre_norm": "mixer.norm",
    "spatial_mamba_mixer.mamba_layer": "mixer.mamba",
}  # fmt: skip
"""Within a stage and within its blocks."""


def checkpoint_name(name: str) -> str | None:
    """The path in `DynamicVis` of a tensor of an official checkpoint; None for what is not of the classifier."""
    if name.startswith("head.fc."):
        return name
    name = name.removeprefix("backbone.").replace("post_meanpool_norm.", "head.norm.")
    if name.startswith("head.norm."):
        return name
    if name == "pos_embed":
        return "stages.0.position"
    found = re.match(r"layers\.(\d+)\.(?:1\.(\d+)\.)?(.+)$", name)
    for theirs, here in _PLACES.items() if found else ():
        if found and found[3].startswith(f"{theirs}."):
            block = f"blocks.{found[2]}." if found[2] else ""
            return f"stages.{found[1]}.{block}{here}.{found[3].removeprefix(f'{theirs}.')}"
    return None
