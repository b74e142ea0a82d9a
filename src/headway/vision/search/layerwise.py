"""Spaces whose genotype names one operation for each layer of a fixed macro-architecture (ProxylessNAS, FBNet)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from headway.core.errors import BadInput
from headway.vision.search.blocks import BlockSpec, ConvSpec, HeadSpec, LayerSpec, NetSpec
from headway.vision.search.space import Choice, Genotype, SearchSpace

SKIP = "skip"
"""The block is left out: its input goes on, through a 1x1 convolution where shapes differ."""
_OP = re.compile(r"k(\d+)e(\d+)(?:g(\d+))?")


@dataclass(frozen=True)
class Layer:
    """A place for one of `ops`: `k3e6`, `k5e1g2` (kernel, expansion, groups) or `skip`."""

    inside: int
    out: int
    stride: int
    ops: tuple[str, ...]

    @property
    def shape_kept(self) -> bool:
        return self.stride == 1 and self.inside == self.out


@dataclass(frozen=True)
class Layerwise:
    """The macro-architecture around the layers. `first` blocks are fixed."""

    name: str
    stem: ConvSpec
    layers: tuple[Layer, ...]
    head: HeadSpec
    size: int
    first: tuple[BlockSpec, ...] = ()
    last: ConvSpec | None = None
    bias: bool = False
    """Whether convolutions of the layers have biases beside batch norm."""
    expand_e1: bool = False
    """Whether blocks of expansion 1 have a first 1x1 convolution."""

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace([Choice(str(i), layer.ops) for i, layer in enumerate(self.layers, 1)])

    def op(self, layer: Layer, name: str) -> LayerSpec | None:
        """What an operation is in a layer; None: nothing at all. Raises `BadInput` for a name that is none."""
        like = self.stem
        if name == SKIP:
            if layer.shape_kept:
                return None
            act = "relu" if like.act == "relu" else "relu6"
            return ConvSpec(layer.inside, layer.out, 1, layer.stride, act, self.bias, like.eps)
        match = _OP.fullmatch(name)
        if match is None:
            raise BadInput(f"{name!r} is no operation", "write e.g. k3e6, k5e1g2 or skip")
        kernel, expansion, groups = (int(part or 1) for part in match.groups())
        return BlockSpec(
            layer.inside,
            layer.out,
            layer.inside * expansion,
            kernel,
            layer.stride,
            like.act,
            groups,
            expand=expansion > 1 or self.expand_e1,
            bias=self.bias,
            eps=like.eps,
        )

    def net(self, genotype: Genotype) -> NetSpec:
        """The plain network of a genotype."""
        return self.spec([str(value) for value in self.space.check(genotype).values()])

    def spec(self, ops: Sequence[str]) -> NetSpec:
        """The plain network with one operation for each layer, candidates or not."""
        if len(ops) != len(self.layers):
            raise BadInput(f"{len(ops)} operations for {len(self.layers)} layers", "name one for each layer")
        made = [self.op(layer, name) for layer, name in zip(self.layers, ops, strict=True)]
        blocks = (*self.first, *(block for block in made if block is not None))
        return NetSpec(self.stem, blocks, self.head, self.size, self.last)

    def layers_in_use(self) -> list[tuple[LayerSpec | HeadSpec, int]]:
        """Every layer that a network of the space may have, with the side of its input in pixels."""
        start = NetSpec(self.stem, self.first, self.head, self.size).layers()
        size = start[-1][1]
        found = start[:-1]
        for layer in self.layers:
            found += [(op, size) for name in layer.ops if (op := self.op(layer, name)) is not None]
            size = -(-size // layer.stride)
        if self.last:
            found.append((self.last, size))
        return [*found, (self.head, size)]

    def extreme(self, largest: bool) -> Genotype:
        """The network with the most or the fewest multiply-adds in its blocks."""
        made: Genotype = {}
        for number, layer in enumerate(self.layers, 1):
            made[str(number)] = (max if largest else min)(layer.ops, key=lambda name: self._work(layer, name))
        return made

    def _work(self, layer: Layer, name: str) -> int:
        op = self.op(layer, name)
        if op is None:
            return 0
        if isinstance(op, ConvSpec):
            return op.inside * op.out
        return op.middle * ((op.inside + op.out) // op.groups + op.kernel**2)

    def for_images(self, channels: int, classes: int, size: int) -> Layerwise:
        """The same architecture for other images."""
        return replace(
            self, stem=replace(self.stem, inside=channels), head=replace(self.head, classes=classes), size=size
        )


def read_ops(text: str) -> list[str]:
    """Operations as papers print them: `6,5` is expansion 6, kernel 5; `1,5g` in two groups; `-` is left out."""
    made = []
    for word in text.replace("·", " ").split():
        expansion, _, kernel = word.removesuffix("g").partition(",")
        made.append(SKIP if word == "-" else f"k{kernel}e{expansion}{'g2' if word.endswith('g') else ''}")
    return made


@lru_cache(maxsize=1)
def d400() -> Layerwise:
    """The oracle space: 400 networks for 16x16 digits, small enough to train every one."""
    ops = ("k3e1", "k3e3", "k5e1", "k5e3")
    layers = (
        Layer(8, 12, 2, ops),
        Layer(12, 12, 1, (*ops, SKIP)),
        Layer(12, 16, 1, ops),
        Layer(16, 16, 1, (*ops, SKIP)),
    )
    return Layerwise("d400", ConvSpec(1, 8, 3), layers, HeadSpec(16, 10), 16)
