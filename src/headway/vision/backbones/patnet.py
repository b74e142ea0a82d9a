"""PATNet (arXiv:2503.03148): partial convolution, and attention on the channels that it leaves untouched.

Three kinds of attention: on channels from means and deviations (stages 1 to 3), between pixels (stage 4), and on
pixels from half the channels, behind each MLP (`spatial`).

The inference form of an MLP with spatial attention: the norm of its first layer is folded into it; the second half's
norm and layer into the rows of the second layer; the first half's scale too, and the attention's weights are divided by
it. So a block of C channels on n pixels costs n * C / 2 multiply-adds more than one without. The norm behind the gate
of the channels becomes part of the first layer. Where a scale is 0, to 1e-6, the first half's norm is kept.

Names in official checkpoints (haiduo/PartialNet) and here:

    patch_embed.{proj,norm}                        stages.0.downsample.{conv,norm}
    stages.(2S-1).{reduction,norm}                 stages.S.downsample.{conv,norm}
    stages.2S.blocks.B                             stages.S.blocks.B
    spatial_mixing.partial_conv3                   mixer.filter
    spatial_mixing.attn.{cfc1,bn}, .norm           mixer.gate.{conv,norm}, mixer.norm
    spatial_mixing.attn.{qkv,proj}                 mixer.attn.{qkv,proj}
    spatial_mixing.attn.rpe_k.lookup_table_bias    mixer.attn.position
    mlp.{0,1,3}                                    mlp.{expand.conv,expand.norm,project}
    mlp.4.{conv_attn,norm,norm2,conv}              mlp.spatial.{gate,norm,rest_norm,rest}
    avgpool_pre_head.1, head                       head.widen, head.classifier
"""

from __future__ import annotations

import re
import warnings
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
from headway.vision.backbones.patnet_mixers import ChannelMixer, PixelMixer
from headway.vision.blocks import ConvNorm, DropPath, drop_rates
from headway.vision.fold import affine_then, scale_shift, then_affine, then_pointwise, with_values

SYSTEM = Card(
    slug="patnet",
    title="PATNet",
    paper="arXiv:2503.03148",
    kind="model",
    slot="network",
    summary="an image backbone of partial convolutions with cheap attention on the channels they leave untouched",
    claim="T2: 80.2 % top-1, 1.3 points over FasterNet-T2, with 25 % more throughput and 24 % less latency on a CPU",
)

HEAD_WIDTH = 1280
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Config:
    """One variant: channels of the first stage, blocks of each, and what training uses."""

    width: int
    depths: tuple[int, ...]
    gelu: bool = False
    drop_path: float = 0.0
    stem: tuple[int, int] = (4, 4)
    """Kernel and stride; no padding where they are equal."""
    head: int = HEAD_WIDTH


CONFIGS = {
    "t0": Config(32, (1, 2, 8, 2), gelu=True),
    "t1": Config(48, (1, 2, 8, 2), gelu=True, drop_path=0.02),
    "t2": Config(64, (2, 2, 6, 4), drop_path=0.05),
    "s": Config(96, (2, 2, 9, 4), drop_path=0.1),
    "m": Config(128, (2, 3, 16, 4), drop_path=0.2),
    "l": Config(160, (2, 3, 20, 4), drop_path=0.3),
}


# ---- the MLP --------------------------------------------------------------------------------------------------------


class SpatialAttention(nn.Module):
    """PAT_sp: a gate for each pixel on the first half of the channels, a layer on the second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.parts = [half, channels - half]
        self.gate = nn.Conv2d(half, 1, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(half)
        self.rest_norm: nn.Module = nn.BatchNorm2d(channels - half)
        self.rest: nn.Module = nn.Conv2d(channels - half, channels - half, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, self.parts, 1)
        first = self.norm(first * F.hardsigmoid(self.gate(first)))
        return torch.cat([first, self.rest(self.rest_norm(second))], 1)


class Shift(nn.Module):
    """Adds a constant to each channel: what is left of a norm whose scale went elsewhere."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.values


class Mlp(nn.Module):
    """1x1 convolutions to `ratio` times the channels and back, and spatial attention: (n, c, h, w) -> the same."""

    def __init__(self, channels: int, ratio: float, gelu: bool, spatial: bool) -> None:
        super().__init__()
        wide = int(channels * ratio)
        self.expand: nn.Module = ConvNorm(channels, wide)
        self.act = nn.GELU() if gelu else nn.ReLU()
        self.project = nn.Conv2d(wide, channels, 1, bias=False)
        self.spatial: nn.Module = SpatialAttention(channels) if spatial else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.project(self.act(self.expand(x))))

    def folded(self) -> nn.Module:
        """The second layer takes in what is linear behind it."""
        part = self.spatial
        if not isinstance(part, SpatialAttention):
            return self
        half = part.parts[0]
        weight = self.project.weight
        first = with_values(self.project, weight[:half].double(), weight.new_zeros(half).double())
        second = with_values(self.project, weight[half:].double(), weight.new_zeros(part.parts[1]).double())
        second = then_pointwise(then_affine(second, *scale_shift(part.rest_norm)), part.rest)  # type: ignore[arg-type]
        part.rest_norm = part.rest = nn.Identity()
        scale, shift = scale_shift(part.norm)
        if float(scale.abs().min()) > SMALLEST_SCALE:
            part.gate = affine_then(part.gate, 1.0 / scale, torch.zeros_like(shift))
            part.gate.bias = None
            part.norm = Shift(shift.to(weight.dtype))
            first = then_affine(first, scale)
        self.project = with_values(
            self.project,
            torch.cat([first.weight, second.weight]),
            torch.cat([first.bias, second.bias]),  # type: ignore[list-item]
        )
        return self


Mixer = Callable[[int, int, int], nn.Module]
"""(channels, n_div, heads) -> what mixes pixels."""


class Block(nn.Module):
    """Mixing and an MLP: one residual around both, or one around each where the mixer says so."""

    def __init__(
        self, channels: int, n_div: int, heads: int, ratio: float, gelu: bool, spatial: bool, drop_path: float,
        mixer: Mixer,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mixer = mixer(channels, n_div, heads)
        self.mlp = Mlp(channels, ratio, gelu, spatial)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixer(x)
        if self.mixer.own_residual:
            mixed = x = x + mixed
        return x + self.drop_path(self.mlp(mixed))

    def folded(self) -> nn.Module:
        """The norm behind the gate goes into the MLP's first layer, which reads it next to the filtered channels."""
        mixer, expand = self.mixer, self.mlp.expand
        if isinstance(mixer, ChannelMixer) and isinstance(expand, nn.Conv2d):
            scale, shift = scale_shift(mixer.norm)
            seen = scale.new_ones(mixer.parts[0])
            self.mlp.expand = affine_then(expand, torch.cat([seen, scale]), torch.cat([0 * seen, shift]))
            mixer.norm = nn.Identity()
        return self


# ---- the network ----------------------------------------------------------------------------------------------------


class Downsample(nn.Module):
    """Convolution and batch norm; without padding where kernel and stride are equal."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        padding = 0 if kernel == stride else kernel // 2
        self.conv = nn.Conv2d(inside, out, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def folded(self) -> nn.Module:
        return then_affine(self.conv, *scale_shift(self.norm))


class Stage(nn.Module):
    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """Pooled features -> widened features -> logits."""

    def __init__(self, inside: int, wide: int, num_classes: int, gelu: bool) -> None:
        super().__init__()
        self.widen = nn.Conv2d(inside, wide, 1, bias=False)
        self.act = nn.GELU() if gelu else nn.ReLU()
        self.classifier = nn.Linear(wide, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.act(self.widen(x[:, :, None, None])).flatten(1)
        return x if pre_logits else self.classifier(x)


class PATNet(Backbone):
    """See `Backbone`. pad: give images whose sides are no multiple of the last stride a border of zeros instead of
    dropping what is over. mixers: of the stages in order; the last one's serves what follows."""

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        in_chans: int = 3,
        spatial_attention: bool = True,
        heads: int = 4,
        n_div: int = 4,
        mlp_ratio: float = 2.0,
        drop_path: float | None = None,
        pad: bool = False,
        mixers: tuple[Mixer, ...] | None = None,
    ) -> None:
        count = len(config.depths)
        widths = [config.width * 2**index for index in range(count)]
        kernel, stride = config.stem
        super().__init__(num_classes, in_chans, widths, [stride * 2**index for index in range(count)])
        self.config, self.pad, self.head_hidden_size = config, pad, config.head
        self.stem = nn.Identity()  # a downsampling like that of every stage
        mixers = mixers or (*[ChannelMixer] * (count - 1), PixelMixer)
        rate = config.drop_path if drop_path is None else drop_path
        rates = iter(drop_rates(rate, sum(config.depths)))
        stages = []
        for index, (inside, width) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            mixer = mixers[min(index, len(mixers) - 1)]
            blocks: list[nn.Module] = [
                Block(width, n_div, heads, mlp_ratio, config.gelu, spatial_attention, next(rates), mixer)
                for _ in range(config.depths[index])
            ]
            stages.append(Stage(Downsample(inside, width, *((kernel, stride) if index == 0 else (2, 2))), blocks))
        self.stages = nn.Sequential(*stages)
        self.head = self.make_head(num_classes)
        self.apply(_initialise)

    def make_head(self, num_classes: int) -> nn.Module:
        return Head(self.num_features, self.config.head, num_classes, self.config.gelu).apply(_initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(self._padded(x))

    def forward_intermediates(self, x: Tensor, *arguments: Any, **named: Any) -> Any:
        return super().forward_intermediates(self._padded(x), *arguments, **named)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool == "avg" and pre_logits and isinstance(self.head, Head):
            return self.head(x.mean((2, 3)), pre_logits=True)
        return super().forward_head(x, pre_logits)

    def check_size(self, height: int, width: int) -> None:
        """Warns where a side is no multiple of the last stride, whose rest the convolutions drop."""
        stride = int(self.feature_info[-1]["reduction"])
        if min(height, width) < stride:
            raise BadInput(f"PATNet was given {height}x{width}", f"images have at least {stride}x{stride} pixels")
        if height % stride or width % stride:
            warnings.warn(
                f"PATNet was given {height}x{width}: what is over multiples of {stride} px is dropped at the right "
                "and below; build it with pad=true to keep it",
                stacklevel=3,
            )

    def _padded(self, x: Tensor) -> Tensor:
        stride = int(self.feature_info[-1]["reduction"])
        return F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride)) if self.pad else x


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PatnetSettings(BackboneSettings):
    variant: Literal["t0", "t1", "t2", "s", "m", "l"] = Field("t2", description="published size; released cfg files")
    spatial_attention: bool = Field(True, description="PAT_sp behind every MLP; the paper's counts include it")
    heads: int = Field(4, ge=1, description="heads of the last stage's attention; released cfg files")
    n_div: int = Field(4, ge=2, description="one part in so many of the channels is convolved; paper, section 3")
    mlp_ratio: float = Field(2.0, gt=0.0, description="width of an MLP over that of its input; released cfg files")
    pad: bool = Field(False, description="pad images to multiples of 32 px instead of dropping what is over")
    fold: bool = Field(True, description="the form for inference: no batch norm is left")


class Patnet(BackboneFamily[PatnetSettings]):
    card = SYSTEM
    settings = PatnetSettings
    timm_classifier = "head.classifier"
    classifier = ("head.classifier.",)

    def variant(self, name: str, **arguments: Any) -> PATNet:
        return PATNet(CONFIGS[name], **arguments)

    def network(self, settings: PatnetSettings) -> PATNet:
        return self.variant(
            settings.variant,
            num_classes=settings.num_classes,
            spatial_attention=settings.spatial_attention,
            heads=settings.heads,
            n_div=settings.n_div,
            mlp_ratio=settings.mlp_ratio,
            pad=settings.pad,
        )

    def image_size(self, settings: PatnetSettings) -> int:
        return 224

    def is_folded(self, settings: PatnetSettings) -> bool:
        return settings.fold

    def ours(self, state: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
        return {checkpoint_name(name): value for name, value in state.items()}


_PARTS: tuple[tuple[str, Any], ...] = (
    (r"^stages\.(\d+)\.(reduction|norm)\.", lambda found: f"stages.{(int(found[1]) + 1) // 2}.downsample.{found[2]}."),
    (r"^stages\.(\d+)\.blocks\.", lambda found: f"stages.{int(found[1]) // 2}.blocks."),
    (r"^patch_embed\.", "stages.0.downsample."),
    (r"\.downsample\.(proj|reduction)\.", ".downsample.conv."),
    (r"\.spatial_mixing\.partial_conv3\.", ".mixer.filter."),
    (r"\.spatial_mixing\.attn\.cfc1\.", ".mixer.gate.conv."),
    (r"\.spatial_mixing\.attn\.bn\.", ".mixer.gate.norm."),
    (r"\.spatial_mixing\.attn\.rpe_k\.lookup_table_bias$", ".mixer.attn.position"),
    (r"\.spatial_mixing\.", ".mixer."),
    (r"\.mlp\.0\.", ".mlp.expand.conv."),
    (r"\.mlp\.1\.", ".mlp.expand.norm."),
    (r"\.mlp\.3\.", ".mlp.project."),
    (r"\.mlp\.4\.conv_attn\.", ".mlp.spatial.gate."),
    (r"\.mlp\.4\.norm2\.", ".mlp.spatial.rest_norm."),
    (r"\.mlp\.4\.norm\.", ".mlp.spatial.norm."),
    (r"\.mlp\.4\.conv\.", ".mlp.spatial.rest."),
    (r"^avgpool_pre_head\.1\.", "head.widen."),
    (r"^head\.(weight|bias)$", r"head.classifier.\1"),
)


def checkpoint_name(name: str) -> str:
    """The path in `PATNet` of a tensor of an official checkpoint."""
    for pattern, here in _PARTS:
        name = re.sub(pattern, here, name)
    return name
