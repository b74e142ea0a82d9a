"""EfficientMod (Ma et al. 2024, arXiv:2403.19963): one branch that filters, modulates and mixes channels.

Within a stage tensors are (n, h, w, c), contiguous: linear layers read them as they are, and a convolution sees the
same memory as channels-last images. Between stages they go by as (n, c, h, w) views.

The inference form (`fused`) joins the two layers that read the norm into one product of c x (c + ratio * c) weights,
puts the norm's affine part into it and the layer scale into the last layer: per block one norm without parameters, one
depthwise convolution, three products, one addition. The cost of a block on n pixels is
n * c * (49 + c * (2 + 2 * ratio)) multiply-adds.

Names in official checkpoints (ma-xu/EfficientMod) and here:

    patch_embed.{proj,norm}                     stages.0.downsample.{conv,norm}
    layers.S.downsample.{proj,norm}             stages.(S+1).downsample.{conv,norm}
    layers.S.blocks.B.norm, .gamma_1            stages.S.blocks.B.norm, .gamma
    layers.S.blocks.B.mlp.{fc1,fc2}             stages.S.blocks.B.{value,project}
    layers.S.blocks.B.mlp.context_layer.{f,g}   stages.S.blocks.B.context.{inner,outer}
    layers.S.blocks.B.mlp.context_layer.context_list.0    stages.S.blocks.B.context.filter
    layers.S.blocks.B.attn, .norm1, .norm2, .mlp          the same names under stages.S.blocks.B
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.vision.backbones.base import Backbone, BackboneFamily, BackboneSettings
from headway.vision.blocks import DropPath, drop_rates
from headway.vision.fold import affine_then, joined, then_affine

SYSTEM = Card(
    slug="efficientmod",
    title="EfficientMod",
    paper="arXiv:2403.19963",
    kind="model",
    slot="network",
    summary="an image backbone whose blocks multiply an MLP by a large filtered context",
    claim="s: 81.0 % top-1 with 12.9 M parameters and 1.4 G multiply-adds, 25 % faster than EfficientFormerV2-S2",
)

HEADS, LEAST_HEAD = 8, 32


@dataclass(frozen=True)
class Config:
    """One variant. ratios: expansion of a stage's blocks in turn, from its first block on."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    """Modulation blocks of each stage."""
    attention: tuple[int, ...] = (0, 0, 0, 0)
    """Attention blocks behind them."""
    ratios: tuple[int, ...] = (1, 6)
    attention_ratio: tuple[int, ...] = (4, 4, 4, 4)
    drop_path: float = 0.0
    stem: tuple[int, int] = (7, 4)
    """Kernel and stride."""


CONFIGS = {
    "xxs": Config((32, 64, 128, 256), (2, 2, 6, 2), (0, 0, 1, 2)),
    "xs": Config((32, 64, 144, 288), (3, 3, 4, 2), (0, 0, 3, 3), ratios=(1, 4)),
    "s": Config((32, 64, 144, 312), (4, 4, 8, 4), (0, 0, 4, 4), attention_ratio=(4, 4, 4, 5), drop_path=0.02),
    "s_conv": Config((40, 80, 160, 344), (4, 4, 12, 8), drop_path=0.02),
}


class Downsample(nn.Module):
    """Convolution and layer norm: (n, c, h, w) -> (n, ceil(h/stride), ceil(w/stride), out)."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1).contiguous())


class Context(nn.Module):
    """What surrounds each pixel: (n, h, w, c) -> the same shape. Equation 4 of the paper."""

    def __init__(self, channels: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, inner)
        self.filter = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        self.outer = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.filter(self.inner(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.outer(F.gelu(x))


class Modulation(nn.Module):
    """`x + gamma * project(value(y) * context(y))`, y = norm(x): (n, h, w, c) -> the same shape.

    ratio: width of the value over that of the input; groups: how often the context is repeated over it, which must
    equal the ratio. A block whose value is as wide as its input, with one group, has no activation on it.
    """

    def __init__(
        self, channels: int, ratio: int, groups: int | None = None, kernel: int = 7, drop_path: float = 0.0,
        layer_scale: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__()
        groups = ratio if groups is None else groups
        wide = channels * ratio
        if groups < 1 or ratio < 1 or wide != groups * channels:
            raise BadInput(
                f"ratio={ratio} with {groups} groups repeats {channels} channels to {channels * groups}, not {wide}",
                "give as many groups as the ratio",
            )
        self.ratio = ratio
        self.norm = nn.LayerNorm(channels)
        self.context = Context(channels, wide // groups, kernel)
        self.value = nn.Linear(channels, wide)
        self.project = nn.Linear(wide, channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        value = self.value(y) if self.ratio == 1 else F.gelu(self.value(y))
        return x + self.drop_path(self.gamma * self.project(self.mix(value, self.context(y))))

    def mix(self, value: Tensor, context: Tensor) -> Tensor:
        """The product; channel j of the value meets channel j mod c of the context."""
        return (value.unflatten(-1, (self.ratio, -1)) * context.unsqueeze(-2)).flatten(-2)

    def folded(self) -> nn.Module:
        return FusedModulation(self)


class FusedModulation(nn.Module):
    """The inference form of `Modulation`."""

    def __init__(self, block: Modulation) -> None:
        super().__init__()
        norm, context = block.norm, block.context
        layers = [affine_then(layer, norm.weight, norm.bias) for layer in (context.inner, block.value)]
        self.ratio = block.ratio
        self.width, self.eps = norm.normalized_shape, norm.eps
        self.parts = [layer.out_features for layer in layers]
        self.both = joined(layers)
        self.filter = context.filter
        self.outer = context.outer
        self.project = then_affine(block.project, block.gamma)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, self.width, None, None, self.eps)
        inner, value = torch.split(self.both(y), self.parts, -1)
        context = self.filter(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        context = self.outer(F.gelu(context)).unsqueeze(-2)
        value = (value if self.ratio == 1 else F.gelu(value)).unflatten(-1, (self.ratio, -1))
        return x + self.project((value * context).flatten(-2))


class Attention(nn.Module):
    """Eight heads of at least 32 channels, which together may be wider than the input: (n, tokens, c) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = max(channels // HEADS, LEAST_HEAD)
        inner = HEADS * self.head
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, self.head)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def attention_macs(self, x: Tensor) -> int:
        batch, tokens, _ = x.shape
        return 2 * batch * tokens * tokens * HEADS * self.head


class FeedForward(nn.Module):
    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels * ratio)
        self.fc2 = nn.Linear(channels * ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class AttentionBlock(nn.Module):
    """Attention and an MLP, each behind a norm and added to its input: (n, h, w, c) -> the same shape."""

    def __init__(self, channels: int, ratio: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(1, 2)
        y = y + self.drop_path(self.attn(self.norm1(y)))
        y = y + self.drop_path(self.mlp(self.norm2(y)))
        return y.reshape(x.shape)

    def folded(self) -> nn.Module:
        """The affine parts of the norms go into the layers that read them."""
        self.attn.qkv = affine_then(self.attn.qkv, self.norm1.weight, self.norm1.bias)
        self.mlp.fc1 = affine_then(self.mlp.fc1, self.norm2.weight, self.norm2.bias)
        for name in ("norm1", "norm2"):
            norm = getattr(self, name)
            setattr(self, name, nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False))
        return self


class Stage(nn.Module):
    """(n, inside, h, w) -> (n, out, h / stride, w / stride), channels-last in memory."""

    def __init__(self, downsample: Downsample, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x)).permute(0, 3, 1, 2)


Blocks = Callable[..., nn.Module]


class EfficientMod(Backbone):
    """See `Backbone`. drop_path: share of branches left out in the last block while training; None: the variant's."""

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path: float | None = None,
        layer_scale: float = 1e-4,
        block: Blocks = Modulation,
    ) -> None:
        kernel, stride = config.stem
        super().__init__(num_classes, in_chans, config.widths, [stride * 2**i for i in range(len(config.widths))])
        self.stem = nn.Identity()  # a downsampling like that of every stage
        rate = config.drop_path if drop_path is None else drop_path
        rates = iter(drop_rates(rate, sum(config.depths) + sum(config.attention)))
        stages = []
        for index, (inside, width) in enumerate(zip((in_chans, *config.widths), config.widths, strict=False)):
            blocks: list[nn.Module] = []
            for step in range(config.depths[index]):
                ratio = config.ratios[step % len(config.ratios)]
                blocks.append(block(width, ratio, drop_path=next(rates), layer_scale=layer_scale))
            for _ in range(config.attention[index]):
                blocks.append(AttentionBlock(width, config.attention_ratio[index], next(rates)))
            first = Downsample(inside, width, *((kernel, stride) if index == 0 else (3, 2)))
            stages.append(Stage(first, blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.make_head(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def last(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def make_head(self, num_classes: int) -> nn.Module:
        if not num_classes:
            return nn.Identity()
        head = nn.Linear(self.num_features, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def check_size(self, height: int, width: int) -> None:
        least = int(self.feature_info[-1]["reduction"])
        if min(height, width) < least:
            raise BadInput(f"EfficientMod was given {height}x{width}", f"images have at least {least}x{least} pixels")


class EfficientModSettings(BackboneSettings):
    variant: Literal["xxs", "xs", "s", "s_conv"] = Field("s", description="published size; paper, table 1")
    drop_path: float = Field(
        -1.0, ge=-1.0, lt=1.0, description="share of branches left out in training, last block; below 0: the variant's"
    )
    layer_scale_init: float = Field(1e-4, gt=0.0, description="initial weight of every block's branch; released code")
    fuse: bool = Field(
        False,
        description="joins norms, layer scale and twin layers: for torch; the native runtime is faster without",
    )
    channels_last: bool = Field(True, description="filters lie in memory as their channels-last inputs do")


class EfficientModFamily(BackboneFamily[EfficientModSettings]):
    card = SYSTEM
    settings = EfficientModSettings

    def variant(self, name: str, **arguments: Any) -> EfficientMod:
        return EfficientMod(CONFIGS[name], **arguments)

    def network(self, settings: EfficientModSettings) -> EfficientMod:
        return self.variant(
            settings.variant,
            num_classes=settings.num_classes,
            drop_path=settings.drop_path if settings.drop_path >= 0 else None,
            layer_scale=settings.layer_scale_init,
        )

    def image_size(self, settings: EfficientModSettings) -> int:
        return 224

    def is_folded(self, settings: EfficientModSettings) -> bool:
        return settings.fuse

    def laid_out(self, network: nn.Module, settings: EfficientModSettings) -> nn.Module:
        return network.to(memory_format=torch.channels_last) if settings.channels_last else network

    def ours(self, state: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
        found = {checkpoint_name(name): value for name, value in state.items()}
        modulation = {name.partition(".context.")[0] for name in found if ".context." in name}
        return {_in_block(name, modulation): value for name, value in found.items()}


def _in_block(name: str, modulation: Collection[str]) -> str:
    """Both kinds of block call their outer layers `mlp.fc1` and `mlp.fc2`; modulation blocks are listed."""
    block, mlp, leaf = name.partition(".mlp.")
    if not mlp or block not in modulation:
        return name
    return f"{block}.{leaf.replace('fc1', 'value').replace('fc2', 'project')}"


_PARTS: tuple[tuple[str, Any], ...] = (
    (r"^patch_embed\.", "stages.0.downsample."),
    (r"^layers\.(\d+)\.downsample\.", lambda found: f"stages.{int(found[1]) + 1}.downsample."),
    (r"^layers\.", "stages."),
    (r"\.downsample\.proj\.", ".downsample.conv."),
    (r"\.mlp\.context_layer\.f\.", ".context.inner."),
    (r"\.mlp\.context_layer\.g\.", ".context.outer."),
    (r"\.mlp\.context_layer\.context_list\.0\.", ".context.filter."),
    (r"\.gamma_1$", ".gamma"),
)


def checkpoint_name(name: str) -> str:
    """The path in `EfficientMod` of a tensor of an official checkpoint, but for the outer layers of blocks."""
    for pattern, here in _PARTS:
        name = re.sub(pattern, here, name)
    return name
