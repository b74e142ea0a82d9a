"""Spaces whose genotype names depth, kernels and widths (and bits) of stages: sub-networks of one nested network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from headway.core.errors import BadInput
from headway.vision.blocks import make_divisible
from headway.vision.search.blocks import BlockSpec, ConvSpec, HeadSpec, LayerSpec, NetSpec
from headway.vision.search.space import Choice, Genotype, SearchSpace

BIT_KINDS = ("pww", "pwa", "dww", "dwa")
"""Weights and activations of the 1x1 convolutions, and of the depthwise one."""


@dataclass(frozen=True)
class Stage:
    """`depths[-1]` blocks at the most, the first of them with `stride`; a sub-network keeps the first ones."""

    width: int
    stride: int
    depths: tuple[int, ...]
    act: str = "relu6"
    squeeze: bool = False


@dataclass(frozen=True)
class Place:
    """Where a block is: `1.2` is the second of the first stage."""

    name: str
    stage: int
    index: int
    inside: int


@dataclass(frozen=True)
class Stagewise:
    """The nested network around the stages."""

    name: str
    stem: ConvSpec
    stages: tuple[Stage, ...]
    head: HeadSpec
    size: int
    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    first: tuple[BlockSpec, ...] = ()
    last: ConvSpec | None = None
    divisor: int = 8
    """Middle widths are multiples of it."""
    width_step: int = 0
    """Channels between two middle widths from `expands[0]` to `expands[-1]` times the input; 0: only `expands`."""
    bits: tuple[int, ...] = ()
    """Bit widths a block's four kinds of tensor may have; none: floating point."""
    tied: bool = False
    """Whether 1x1 and depthwise convolutions share their bits."""
    resolutions: tuple[int, ...] = ()
    forbidden: tuple[tuple[str, int, str, int], ...] = ()
    """(kind, value, kind, value) that no block may have together."""

    @cached_property
    def places(self) -> list[Place]:
        """Every block of the largest network."""
        inside = self.first[-1].out if self.first else self.stem.out
        made = []
        for s, stage in enumerate(self.stages, 1):
            for i in range(1, stage.depths[-1] + 1):
                made.append(Place(f"{s}.{i}", s, i, inside))
                inside = stage.width
        return made

    def middles(self, inside: int) -> tuple[int, ...]:
        """Middle widths of a block, rising; rounding may make two of them one."""
        if self.width_step:
            low, high = self.expands[0] * inside, self.expands[-1] * inside
            return tuple(range(low, high + 1, self.width_step))
        return tuple(dict.fromkeys(self.middle(inside, e) for e in self.expands))

    def middle(self, inside: int, expand: int) -> int:
        return make_divisible(inside * expand, self.divisor)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of bits that are chosen."""
        if not self.bits:
            return ()
        return ("w", "a") if self.tied else BIT_KINDS

    @cached_property
    def space(self) -> SearchSpace:
        """Depths, then kernels, then widths (`e`: expansion, `m`: channels), then bits kind by kind, then the size."""
        choices = [
            Choice(f"d{s}", stage.depths, encoded=False)
            for s, stage in enumerate(self.stages, 1)
            if len(stage.depths) > 1
        ]
        width = "m" if self.width_step else "e"
        places = self.places
        columns = [("k", lambda place: self.kernels)]
        columns += [(width, lambda place: self.middles(place.inside) if self.width_step else self.expands)]
        columns += [(kind, lambda place: self.bits) for kind in self.kinds]
        for kind, options in columns:
            for place in places:
                depths = self.stages[place.stage - 1].depths
                deep = tuple(d for d in depths if d >= place.index)
                when = (f"d{place.stage}", deep) if len(deep) < len(depths) else None
                choices.append(Choice(f"{kind}{place.name}", options(place), when, place.name))
        if self.resolutions:
            choices.append(Choice("r", self.resolutions))
        pairs = [
            ((f"{one}{place.name}", value), (f"{other}{place.name}", second))
            for one, value, other, second in self.forbidden
            for place in places
        ]
        return SearchSpace(choices, pairs)

    def block(self, place: Place, kernel: int, middle: int) -> BlockSpec:
        stage = self.stages[place.stage - 1]
        return BlockSpec(
            place.inside,
            stage.width,
            middle,
            kernel,
            stage.stride if place.index == 1 else 1,
            stage.act,
            squeeze=make_divisible(middle // 4) if stage.squeeze else 0,
            eps=self.stem.eps,
        )

    def blocks(self, genotype: Genotype) -> list[tuple[Place, int, int]]:
        """(place, kernel, middle width) of the blocks that a genotype has."""
        made = []
        for place in self.places:
            kernel = genotype.get(f"k{place.name}")
            if kernel is None:
                continue
            middle = (
                int(genotype[f"m{place.name}"])
                if self.width_step
                else self.middle(place.inside, int(genotype[f"e{place.name}"]))
            )
            made.append((place, int(kernel), middle))
        return made

    def net(self, genotype: Genotype) -> NetSpec:
        """The plain network of a genotype, bits aside."""
        genotype = self.space.check(genotype)
        blocks = (*self.first, *(self.block(*part) for part in self.blocks(genotype)))
        return NetSpec(self.stem, blocks, self.head, int(genotype.get("r", self.size)), self.last)

    def genotype(self, rows: str, size: int = 0) -> Genotype:
        """A genotype as papers print it: `expansion,kernel` for each block, stages apart by `·`."""
        made: Genotype = {"r": size} if self.resolutions else {}
        parts = rows.split("·")
        if len(parts) != len(self.stages):
            raise BadInput(f"{len(parts)} stages of {len(self.stages)}", "part the stages by ·")
        for s, part in enumerate(parts, 1):
            words = part.split()
            if len(self.stages[s - 1].depths) > 1:
                made[f"d{s}"] = len(words)
            for i, word in enumerate(words, 1):
                expand, _, kernel = word.partition(",")
                made |= {f"e{s}.{i}": int(expand), f"k{s}.{i}": int(kernel)}
        return self.space.check(made)

    def extreme(self, largest: bool) -> Genotype:
        """The largest or the smallest network (bits too)."""
        made: Genotype = {}
        for choice in self.space.choices:
            if choice.when is None or made.get(choice.when[0]) in choice.when[1]:
                options = self.space.allowed(choice, made)
                made[choice.name] = max(options) if largest else min(options)
        return made

    def layers_in_use(self) -> list[tuple[LayerSpec | HeadSpec, int]]:
        """Every layer that a network of the space may have, with the side of its input in pixels."""
        found: list[tuple[LayerSpec | HeadSpec, int]] = []
        for side in self.resolutions or (self.size,):
            start = NetSpec(self.stem, self.first, self.head, side).layers()
            found += start[:-1]
            size = start[-1][1]
            for place in self.places:
                blocks = [self.block(place, k, m) for k in self.kernels for m in self.middles(place.inside)]
                found += [(block, size) for block in blocks]
                size = -(-size // blocks[0].stride)
            if self.last:
                found.append((self.last, size))
            found.append((self.head, size))
        return found

    def for_images(self, channels: int, classes: int, size: int) -> Stagewise:
        """The same architecture for other images."""
        return replace(
            self,
            stem=replace(self.stem, inside=channels),
            head=replace(self.head, classes=classes),
            size=size,
            resolutions=(),
        )
