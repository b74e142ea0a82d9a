"""SHViT (Yun & Ro 2024, arXiv:2401.16456): few tokens, and attention with one head on some of the channels.

Names in official checkpoints (ysj9909/SHViT) and here:

    patch_embed.I              stem.I
    blocks1.D                  stages.0.blocks.D
    blocks2.0.{0,1}            stages.1.downsample.{0,1}      blocks3 and stages.2 likewise
    blocks2.1                  stages.1.downsample.2
    blocks2.2.{0,1}            stages.1.downsample.{3,4}
    blocks2.D, D >= 3          stages.1.blocks.(D - 3)
    head, head_dist            head, or head.labels and head.teacher
    .m. .c. .bn. .l.           .inner. .conv. .norm. .linear.
    .pw1. .pw2. .proj.1.       .expand. .project. .project.
    .conv1. .conv2. .conv3.    .expand. .depthwise. .project. (of a merging)

timm's names differ in the first part only: `stages.S.downsample.I`, `stages.S.blocks.D`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.vision.backbones.base import Backbone, BackboneFamily, BackboneSettings, check_partial
from headway.vision.blocks import ConvNorm, NormLinear, Residual, SqueezeExcite, TwoHeads, multiple_of
from headway.vision.fold import averaged

SYSTEM = Card(
    slug="shvit",
    title="SHViT",
    paper="arXiv:2401.16456",
    kind="model",
    slot="network",
    summary="an image backbone with a stride-16 stem and one-head attention on a part of the channels",
    claim="S4: 79.4 % top-1 with 16.5 M parameters and 986 M multiply-adds; 8.1x MobileViTv2-1.0's speed on a CPU",
)

QUERY = 16
"""Channels of queries and of keys."""


@dataclass(frozen=True)
class Config:
    """One variant. A stage is of blocks with attention where its `partial` is not 0."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    partial: tuple[int, ...]
    """Channels that attention sees, per stage."""
    image_size: int = 224
    stem: tuple[int, ...] = ()
    """Widths of the stem's convolutions of stride 2; empty: an eighth, a quarter, half and all of the first width."""
    squeeze: bool = True
    """Whether merging gates its channels."""


CONFIGS = {
    "s1": Config((128, 224, 320), (2, 4, 5), (0, 48, 68)),
    "s2": Config((128, 308, 448), (2, 4, 5), (0, 66, 96)),
    "s3": Config((192, 352, 448), (3, 5, 5), (0, 75, 96)),
    "s4": Config((224, 336, 448), (4, 7, 6), (0, 72, 96), image_size=256),
}


class FeedForward(nn.Module):
    """1x1 convolutions to twice the channels and back: (n, c, h, w) -> the same shape."""

    def __init__(self, channels: int, gamma: float = 0.0) -> None:
        super().__init__()
        self.expand = ConvNorm(channels, 2 * channels)
        self.project = ConvNorm(2 * channels, channels, gamma=gamma)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.relu(self.expand(x)))


class SingleHeadAttention(nn.Module):
    """Attention with one head on the first `part` channels; the others go straight to the common projection.

    (n, c, h, w) -> the same shape. Section 3.2 of the paper.
    """

    def __init__(self, channels: int, part: int) -> None:
        super().__init__()
        check_partial(part, channels, "partial")
        self.part = part
        self.rest = channels - part
        self.pre_norm = nn.GroupNorm(1, part)
        self.qkv = ConvNorm(part, 2 * QUERY + part)
        self.project = ConvNorm(channels, channels, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        seen, rest = torch.split(x, [self.part, self.rest], 1)
        q, k, v = (t.flatten(2) for t in torch.split(self.qkv(self.pre_norm(seen)), [QUERY, QUERY, self.part], 1))
        weights = torch.softmax((q * QUERY**-0.5).mT @ k, -1)
        seen = (v @ weights.mT).reshape(seen.shape)
        return self.project(torch.relu(torch.cat([seen, rest], 1)))

    def attention_macs(self, x: Tensor) -> int:
        tokens = x.shape[2] * x.shape[3]
        return x.shape[0] * tokens * tokens * (QUERY + self.part)


Mixer = Callable[[int, int], nn.Module]
"""(channels, channels that attention sees) -> what mixes tokens."""


class Block(nn.Module):
    """Local filter, attention (in stages that have it), feed-forward; each added to its input."""

    def __init__(self, channels: int, part: int, mixer: Mixer) -> None:
        super().__init__()
        self.conv = Residual(ConvNorm(channels, channels, 3, groups=channels, gamma=0.0))
        self.mixer = Residual(mixer(channels, part)) if part else nn.Identity()
        self.ffn = Residual(FeedForward(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.mixer(self.conv(x)))


class Merging(nn.Module):
    """Halves the map: (n, inside, h, w) -> (n, out, ceil(h/2), ceil(w/2))."""

    def __init__(self, inside: int, out: int, squeeze: bool) -> None:
        super().__init__()
        wide = 4 * inside
        self.expand = ConvNorm(inside, wide)
        self.depthwise = ConvNorm(wide, wide, 3, 2, groups=wide)
        self.se = SqueezeExcite(wide, multiple_of(wide / 4)) if squeeze else nn.Identity()
        self.project = ConvNorm(wide, out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.expand(x))))
        return self.project(self.se(x))


class Stage(nn.Module):
    def __init__(self, inside: int, out: int, depth: int, part: int, squeeze: bool, mixer: Mixer) -> None:
        super().__init__()
        self.downsample = nn.Identity() if not inside else _downsample(inside, out, squeeze)
        self.blocks = nn.Sequential(*(Block(out, part, mixer) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


def _downsample(inside: int, out: int, squeeze: bool) -> nn.Module:
    """The filters around a merging begin with weight 1, unlike those of blocks; every feed-forward ends with 0."""
    return nn.Sequential(
        Residual(ConvNorm(inside, inside, 3, groups=inside)),
        Residual(FeedForward(inside)),
        Merging(inside, out, squeeze),
        Residual(ConvNorm(out, out, 3, groups=out)),
        Residual(FeedForward(out)),
    )


class SHViT(Backbone):
    """See `Backbone`. distillation: a second head for a teacher's labels; while training, both outputs are given."""

    def __init__(
        self,
        config: Config,
        num_classes: int = 1000,
        in_chans: int = 3,
        distillation: bool = False,
        mixer: Mixer = SingleHeadAttention,
    ) -> None:
        first = config.widths[0]
        stem = config.stem or (first // 8, first // 4, first // 2, first)
        strides = [2 ** (len(stem) + index) for index in range(len(config.widths))]
        super().__init__(num_classes, in_chans, config.widths, strides)
        self.distillation = distillation
        steps: list[nn.Module] = []
        for inside, out in zip((in_chans, *stem), stem, strict=False):
            steps += [ConvNorm(inside, out, 3, 2), nn.ReLU()]
        self.stem = nn.Sequential(*steps[:-1])
        before = (0, *config.widths)
        table = zip(before, config.widths, config.depths, config.partial, strict=False)
        self.stages = nn.Sequential(*(Stage(*row, config.squeeze, mixer) for row in table))
        self.head = self.make_head(num_classes)

    def make_head(self, num_classes: int) -> nn.Module:
        if not num_classes:
            return nn.Identity()
        heads = [NormLinear(self.num_features, num_classes) for _ in range(1 + self.distillation)]
        return TwoHeads(*heads) if self.distillation else heads[0]

    def check_size(self, height: int, width: int) -> None:
        """Warns where the last map is a single pixel, to which attention has nothing to add."""
        stride = int(self.feature_info[-1]["reduction"])
        if max(height, width) <= stride:
            warnings.warn(
                f"SHViT was given {height}x{width}: its last map is one pixel; give more than {stride} px", stacklevel=3
            )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.training and x.shape[0] == 1 and self.num_classes and not pre_logits:
            raise BadInput("a batch norm cannot train on one image", "train with batches of two or more")
        return super().forward_head(x, pre_logits)


class ShvitSettings(BackboneSettings):
    variant: Literal["s1", "s2", "s3", "s4"] = Field("s4", description="published size; paper, table 2")
    distillation: bool = Field(False, description="a second head, for a teacher's labels; both are averaged")
    fold: bool = Field(True, description="the form for inference: norms and residual taps in the convolutions")


class Shvit(BackboneFamily[ShvitSettings]):
    card = SYSTEM
    settings = ShvitSettings

    timm_classifier = "head.linear"
    stages = 3

    def variant(self, name: str, **arguments: Any) -> SHViT:
        return SHViT(CONFIGS[name], **arguments)

    def network(self, settings: ShvitSettings) -> SHViT:
        return self.variant(settings.variant, num_classes=settings.num_classes, distillation=settings.distillation)

    def image_size(self, settings: ShvitSettings) -> int:
        return CONFIGS[settings.variant].image_size

    def ours(self, state: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
        """The heads of a distilled checkpoint are averaged where the network has only one."""
        found = {checkpoint_name(name): value for name, value in state.items()}
        parts = {"head": "labels", "head_dist": "teacher"}
        heads = {part: {} for part in parts}
        for name in list(found):
            part, _, leaf = name.partition(".")
            if part in parts:
                heads[part][leaf] = found.pop(name)
        if isinstance(network.head, TwoHeads):
            return found | {f"head.{parts[p]}.{leaf}": v for p, head in heads.items() for leaf, v in head.items()}
        head = heads["head"]
        if heads["head_dist"]:
            warnings.warn("the checkpoint was distilled: its two heads are averaged", stacklevel=2)
            head = _averaged(*heads.values())
        return found | {f"head.{leaf}": value for leaf, value in head.items()}


def _averaged(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `NormLinear` whose output is the mean of two others' in `eval`."""
    heads = []
    for tensors in (first, second):
        classes, inside = tensors["linear.weight"].shape
        heads.append(NormLinear(inside, classes))
        heads[-1].load_state_dict(dict(tensors))
    made = NormLinear(inside, classes)
    made.norm.weight.data.fill_((1.0 + made.norm.eps) ** 0.5)  # so that the norm does nothing
    mean = averaged(heads[0].folded(), heads[1].folded())
    made.linear.weight, made.linear.bias = mean.weight, mean.bias
    return dict(made.state_dict())


_LEAVES = {"m": "inner", "c": "conv", "bn": "norm", "l": "linear", "pw1": "expand", "pw2": "project", "proj": "project"}
_MERGING = {"conv1": "expand", "conv2": "depthwise", "conv3": "project"}
_BEFORE = ["0.0", "0.1", "1", "2.0", "2.1"]
"""Parts of a downsampling within `blocks2` and `blocks3`, in our order."""


def checkpoint_name(name: str) -> str:
    """The path in `SHViT` of a tensor of an official checkpoint, or of timm's."""
    name = re.sub(r"^patch_embed\.", "stem.", name)
    name = re.sub(r"^blocks1\.", "stages.0.blocks.", name)
    found = re.match(r"^blocks([23])\.(0\.[01]|1|2\.[01]|\d+)\.(.*)$", name)
    if found:
        stage, place, rest = int(found[1]) - 1, found[2], found[3]
        inside = f"downsample.{_BEFORE.index(place)}" if place in _BEFORE else f"blocks.{int(place) - 3}"
        name = f"stages.{stage}.{inside}.{rest}"
    name = name.replace(".proj.1.", ".proj.")
    return ".".join(_LEAVES.get(part) or _MERGING.get(part) or part for part in name.split("."))
