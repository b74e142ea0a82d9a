"""Plain networks of inverted residuals, written as data: what every space of this folder decodes a genotype into.

A `NetSpec` is a stem, blocks, an optional last convolution, a mean over pixels, an optional hidden layer and a
classifier. Its layers know the key under which a cost table holds them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.blocks import ACTS, ConvNormAct, SqueezeExcite


@dataclass(frozen=True)
class ConvSpec:
    """Convolution, batch norm and activation: (n, inside, r, r) -> (n, out, ceil(r/stride), ceil(r/stride))."""

    inside: int
    out: int
    kernel: int = 1
    stride: int = 1
    act: str = "relu6"
    bias: bool = False
    """A bias beside batch norm, as some published definitions have it."""
    eps: float = 1e-3

    def key(self, size: int) -> str:
        """Under what a cost table holds this layer on inputs of `size` pixels a side."""
        after = -(-size // self.stride)
        return f"conv {size}x{size}x{self.inside}->{after}x{after}x{self.out} k{self.kernel} s{self.stride} {self.act}"

    def build(self) -> ConvNormAct:
        return ConvNormAct(self.inside, self.out, self.kernel, self.stride, act=self.act, bias=self.bias, eps=self.eps)


@dataclass(frozen=True)
class BlockSpec:
    """An inverted residual: 1x1 to `middle` channels, depthwise, squeeze-and-excitation, 1x1 to `out`.

    Its input is added where the stride is 1 and the channels agree.
    """

    inside: int
    out: int
    middle: int
    kernel: int
    stride: int
    act: str = "relu6"
    groups: int = 1
    """Groups of both 1x1 convolutions; channels are shuffled between them where there are several."""
    squeeze: int = 0
    """Hidden units of squeeze-and-excitation; 0: none."""
    expand: bool = True
    """Whether there is a first 1x1 convolution (without it `middle` is `inside`)."""
    bias: bool = False
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise BadInput(f"kernel {self.kernel} is even", "write 3, 5 or 7")
        for channels in (self.inside, self.middle, self.out):
            if channels % self.groups:
                raise BadInput(f"{channels} channels do not divide into {self.groups} groups", "use even widths")
        if not self.expand and self.middle != self.inside:
            raise BadInput(f"{self.middle} middle channels without an expansion", f"expand, or write {self.inside}")

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.inside == self.out

    def key(self, size: int) -> str:
        """As `ConvSpec.key`."""
        after = -(-size // self.stride)
        rest = f" g{self.groups}" * (self.groups > 1) + f" se{self.squeeze}" * (self.squeeze > 0)
        return (
            f"mbconv {size}x{size}x{self.inside}->{after}x{after}x{self.out} m{self.middle}"
            f" k{self.kernel} s{self.stride} {self.act}{rest}{'' if self.expand else ' noexpand'}"
        )

    def build(self) -> MBConv:
        return MBConv(self)


LayerSpec = ConvSpec | BlockSpec


@dataclass(frozen=True)
class HeadSpec:
    """Mean over pixels, an optional 1x1 without norm or bias, the classifier: (n, inside, r, r) -> (n, classes)."""

    inside: int
    classes: int
    hidden: int = 0
    act: str = "hswish"

    def key(self, size: int) -> str:
        return f"head {size}x{size}x{self.inside} h{self.hidden} {self.classes}"

    def build(self) -> Head:
        return Head(self)


@dataclass(frozen=True)
class NetSpec:
    """A whole network for square images of `size` pixels a side."""

    stem: ConvSpec
    blocks: tuple[LayerSpec, ...]
    head: HeadSpec
    size: int
    last: ConvSpec | None = None

    def layers(self) -> list[tuple[LayerSpec | HeadSpec, int]]:
        """Every layer with the side of its input in pixels, in order; the head is the last."""
        size = self.size
        found: list[tuple[LayerSpec | HeadSpec, int]] = []
        for spec in (self.stem, *self.blocks, *((self.last,) if self.last else ())):
            found.append((spec, size))
            size = -(-size // spec.stride)
        return [*found, (self.head, size)]

    def keys(self) -> list[str]:
        """The keys of all layers in a cost table."""
        return [spec.key(size) for spec, size in self.layers()]

    def shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        return batch, self.stem.inside, self.size, self.size

    def for_images(self, channels: int, classes: int, size: int) -> NetSpec:
        """The same network for other images."""
        stem, head = replace(self.stem, inside=channels), replace(self.head, classes=classes)
        return replace(self, stem=stem, head=head, size=size)

    def build(self) -> PlainNet:
        return PlainNet(self)


class MBConv(nn.Module):
    """See `BlockSpec`."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        form = {"bias": spec.bias, "eps": spec.eps}
        wide = spec.middle
        self.expand = (
            ConvNormAct(spec.inside, wide, groups=spec.groups, act=spec.act, **form) if spec.expand else nn.Identity()
        )
        self.shuffle = nn.ChannelShuffle(spec.groups) if spec.groups > 1 else nn.Identity()
        self.depthwise = ConvNormAct(wide, wide, spec.kernel, spec.stride, wide, act=spec.act, **form)
        self.squeeze = SqueezeExcite(wide, spec.squeeze, gate=F.hardsigmoid) if spec.squeeze else nn.Identity()
        self.project = ConvNormAct(wide, spec.out, groups=spec.groups, act="none", **form)
        self.residual = spec.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(self.shuffle(self.expand(x)))))
        return x + y if self.residual else y


class Head(nn.Module):
    """See `HeadSpec`."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.hidden = (
            nn.Sequential(nn.Linear(spec.inside, spec.hidden, bias=False), ACTS[spec.act]())
            if spec.hidden
            else nn.Identity()
        )
        self.classifier = nn.Linear(spec.hidden or spec.inside, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(x.mean((2, 3))))


class PlainNet(nn.Module):
    """A network as its `NetSpec` says: (n, 3, r, r) float32 -> (n, classes) logits."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.stem = spec.stem.build()
        self.blocks = nn.Sequential(*(block.build() for block in spec.blocks))
        self.last = spec.last.build() if spec.last else nn.Identity()
        self.head = spec.head.build()
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))))


def initialise(module: nn.Module) -> None:
    """He initialisation by fan-out, as all four systems' released code does it."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out")
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, 0.0, 0.01)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
