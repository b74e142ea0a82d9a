"""What convolutions with few bits cost: tables of latency and energy by shape and bits, read, modelled or measured.

Keys are those of APQ's release: `(in, out, in-res, kernel, stride, pad, groups)-W{bits}A{bits}`. A network costs the
fixed ends and the sum of its blocks' three convolutions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from headway.core.errors import BadFile
from headway.core.files import read_json
from headway.core.packed_modules import PackedConv1x1
from headway.core.progress import Progress
from headway.llm.weights.bipolar import BipolarWeight
from headway.vision.search.blocks import BlockSpec
from headway.vision.search.cost_table import CostTable, measure_modules
from headway.vision.search.quantised_net import FIXED, BlockBits
from headway.vision.search.space import Genotype
from headway.vision.search.stagewise import Place, Stagewise

ROUNDS = 10
MEASURED = "latency is the sum of layers timed here: 1x1 convolutions with their bits, depthwise ones in floats"


@dataclass(frozen=True)
class BitShape:
    """A convolution over square inputs of `size` pixels a side, with the bits of its weights and inputs."""

    inside: int
    out: int
    size: int
    kernel: int
    stride: int
    groups: int
    weight_bits: int
    act_bits: int

    @property
    def key(self) -> str:
        shape = (self.inside, self.out, self.size, self.kernel, self.stride, self.kernel // 2, self.groups)
        return f"{shape}-W{self.weight_bits}A{self.act_bits}"

    @property
    def results(self) -> int:
        """Numbers that come out."""
        return self.out * (-(-self.size // self.stride)) ** 2

    @property
    def weights(self) -> int:
        return self.out * (self.inside // self.groups) * self.kernel**2

    @property
    def macs(self) -> int:
        return self.results * (self.inside // self.groups) * self.kernel**2

    @property
    def bytes_in(self) -> float:
        """Of weights and inputs, at their bits."""
        return (self.inside * self.size**2 * self.act_bits + self.weights * self.weight_bits) / 8


@dataclass(frozen=True)
class Platform:
    """An accelerator whose multipliers are fused of pieces: half the bits of one factor, twice the products.

    A layer takes the longer of its products and its bytes; every result's 32-bit sum is written and read.
    """

    dense: float
    """Products of 8 x 8 bits a second, of convolutions over all channels."""
    depthwise: float
    bandwidth: float
    """Bytes a second."""
    dense_j: float
    """Joules a product of 8 x 8 bits."""
    depthwise_j: float
    byte_j: float

    def latency(self, shape: BitShape) -> float:
        """Seconds."""
        rate = self.depthwise if shape.groups > 1 else self.dense
        return max(self._products(shape) / rate, self._bytes(shape) / self.bandwidth)

    def energy(self, shape: BitShape) -> float:
        """Joules."""
        each = self.depthwise_j if shape.groups > 1 else self.dense_j
        return self._products(shape) * each + self._bytes(shape) * self.byte_j

    def _products(self, shape: BitShape) -> float:
        """In products of 8 x 8 bits."""
        return shape.macs * fused(shape.weight_bits) * fused(shape.act_bits) / 64

    def _bytes(self, shape: BitShape) -> float:
        return shape.bytes_in + 8 * shape.results


def fused(bits: int) -> int:
    """The power of two that so many bits take: 6 as 8."""
    return 1 << max(1, (bits - 1).bit_length())


BITFUSION = Platform(256e9, 4e9, 12e9, 3e-12, 175e-12, 145e-12)
"""Read off APQ's released table: its 6,567 latencies are met within 15% in the mean, its energies too."""


@dataclass(frozen=True)
class BitTable:
    """Seconds, and joules where they are known, by the keys of shapes; both with the fixed ends as offset."""

    latency: CostTable
    energy: CostTable | None = None
    notes: Sequence[str] = field(default=())

    def shapes(self, keys: Sequence[str]) -> dict[str, float]:
        """What some convolutions add: `latency_s`, and `energy_j`; raises `BadInput` for a missing key."""
        made = {"latency_s": sum(self.latency.of(key) for key in keys)}
        if self.energy is not None:
            made["energy_j"] = sum(self.energy.of(key) for key in keys)
        return made

    @property
    def ends(self) -> dict[str, float]:
        return {"latency_s": self.latency.offset, **({"energy_j": self.energy.offset} if self.energy else {})}


def shapes_of(block: BlockSpec, size: int, bits: BlockBits) -> list[BitShape]:
    """The convolutions of a block on inputs of `size` pixels a side."""
    wide, after = block.middle, -(-size // block.stride)
    pw, dw = (bits.pww, bits.pwa), (bits.dww, bits.dwa)
    made = [BitShape(block.inside, wide, size, 1, 1, 1, *pw)] if block.expand else []
    return [
        *made,
        BitShape(wide, wide, size, block.kernel, block.stride, wide, *dw),
        BitShape(wide, block.out, after, 1, 1, 1, *pw),
    ]


def place_sizes(macro: Stagewise) -> dict[str, int]:
    """Pixels a side of every place's input."""
    size = -(-macro.size // macro.stem.stride)
    for block in macro.first:
        size = -(-size // block.stride)
    made = {}
    for place in macro.places:
        made[place.name] = size
        if place.index == 1:
            size = -(-size // macro.stages[place.stage - 1].stride)
    return made


def policies(macro: Stagewise, kernel: int) -> Iterator[BlockBits]:
    """The bits that a block with such a kernel may have."""
    bits = macro.bits
    every = ((w, a, w, a) for w, a in product(bits, bits)) if macro.tied else product(bits, repeat=4)
    for each in every:
        made = BlockBits(*each)
        named = {"k": kernel, **made.__dict__}
        if not any(named.get(one) == a and named.get(other) == b for one, a, other, b in macro.forbidden):
            yield made


def place_options(macro: Stagewise, place: Place) -> Iterator[tuple[int, int, BlockBits]]:
    """(kernel, middle width, bits) that a block may have."""
    for kernel in macro.kernels:
        for bits in policies(macro, kernel):
            for middle in macro.middles(place.inside):
                yield kernel, middle, bits


def every_shape(macro: Stagewise) -> dict[str, BitShape]:
    """All that a table of the space must hold, by key."""
    found = {}
    sizes = place_sizes(macro)
    for place, kernel in product(macro.places, macro.kernels):
        allowed = {(bits.dww, bits.dwa) for bits in policies(macro, kernel)}
        for middle, (w, a) in product(macro.middles(place.inside), product(macro.bits, macro.bits)):
            block = macro.block(place, kernel, middle)
            for shape in shapes_of(block, sizes[place.name], BlockBits(w, a, w, a)):
                if shape.groups == 1 or (w, a) in allowed:
                    found[shape.key] = shape
    return found


def fixed_shapes(macro: Stagewise) -> list[BitShape]:
    """What every network of the space has besides its blocks: stem, fixed blocks, last convolution, classifier."""
    stem = macro.stem
    made = [BitShape(stem.inside, stem.out, macro.size, stem.kernel, stem.stride, 1, FIXED, FIXED)]
    size = -(-macro.size // stem.stride)
    for block in macro.first:
        made += shapes_of(block, size, BlockBits(*[FIXED] * 4))
        size = -(-size // block.stride)
    for stage in macro.stages:
        size = -(-size // stage.stride)
    if macro.last:
        made.append(BitShape(macro.last.inside, macro.last.out, size, 1, 1, 1, FIXED, FIXED))
    made.append(BitShape(macro.head.inside, macro.head.classes, 1, 1, 1, 1, FIXED, FIXED))
    return made


def modelled(macro: Stagewise, platform: Platform = BITFUSION) -> BitTable:
    """The table of a space by an accelerator's model."""
    shapes, ends = every_shape(macro), fixed_shapes(macro)
    return BitTable(
        CostTable({k: platform.latency(s) for k, s in shapes.items()}, offset=sum(map(platform.latency, ends))),
        CostTable({k: platform.energy(s) for k, s in shapes.items()}, "J", offset=sum(map(platform.energy, ends))),
        ("latency and energy are those of a model of an accelerator (BitFusion), not of this machine",),
    )


def measured(macro: Stagewise, batch: int, rounds: int = ROUNDS, progress: Progress | None = None) -> BitTable:
    """Seconds a batch on this machine: 1x1 convolutions by `bipolar-int`'s kernels, depthwise ones in floats."""
    shapes = {**every_shape(macro), **{f"end {i}": shape for i, shape in enumerate(fixed_shapes(macro))}}
    # what has no kernel with bits is timed once for all bits
    names = {key: _timed_as(shape) for key, shape in shapes.items()}
    arms = {
        names[key]: (_kernel(shape), (batch, shape.inside, shape.size, shape.size)) for key, shape in shapes.items()
    }
    seconds = measure_modules(arms, rounds, 0, progress)
    costs = {key: seconds[name] for key, name in names.items()}
    ends = sum(cost for key, cost in costs.items() if key.startswith("end "))
    return BitTable(
        CostTable({key: cost for key, cost in costs.items() if not key.startswith("end ")}, offset=ends, batch=batch),
        None,
        (MEASURED,),
    )


def _packs(shape: BitShape) -> bool:
    return shape.kernel == 1 and shape.groups == 1


def _timed_as(shape: BitShape) -> str:
    return shape.key if _packs(shape) else shape.key.partition("-W")[0]


def _kernel(shape: BitShape) -> nn.Module:
    if not _packs(shape):
        padding = shape.kernel // 2
        return nn.Conv2d(shape.inside, shape.out, shape.kernel, shape.stride, padding, groups=shape.groups, bias=False)
    codes = np.random.default_rng(0).integers(0, 1 << shape.weight_bits, (shape.out, shape.inside), np.uint8)
    scale = np.ones((shape.out, 1), np.float32)
    weight = BipolarWeight.from_codes(
        codes, scale, bits=shape.weight_bits, group_size=0, act_bits=shape.act_bits, act_group=0, clip=0
    )
    return PackedConv1x1(weight, None)


def read_table(path: str | Path) -> BitTable:
    """A table as released (JSON: key -> `latency` in ms and `energy` in mJ, `head` and `tail`), or as comma-separated.

    Columns of the latter: part (conv, head or tail), in_channels, out_channels, in_size, kernel, stride, padding,
    groups, weight_bits, act_bits, latency_ms, energy_mj. Raises `BadFile` for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise BadFile(path, 0, "no such file", "give a table as APQ releases it, or leave `table` empty")
    try:
        rows = _from_csv(path) if path.suffix == ".csv" else _from_json(read_json(path))
        costs = {key: (float(row[0]), float(row[1])) for key, row in rows.items()}
        head, tail = costs.pop("head"), costs.pop("tail")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(path, 0, f"no table of latencies and energies ({error!r})", "see `read_table`") from None
    if bad := [key for key, row in costs.items() if not np.isfinite(row).all()]:
        raise BadFile(path, 0, f"the costs of {bad[0]} are no numbers", "measure it again")
    tables = []
    for index, unit in enumerate(("s", "J")):
        each = {key: 1e-3 * row[index] for key, row in costs.items()}
        tables.append(CostTable(each, unit, offset=1e-3 * (head[index] + tail[index])))
    return BitTable(*tables, (f"latency and energy are those of the accelerator of {path.name}, not of this machine",))


def _from_json(document: Any) -> dict[str, tuple[Any, Any]]:
    return {key: (row["latency"], row["energy"]) for key, row in document.items()}


def _from_csv(path: Path) -> dict[str, tuple[Any, Any]]:
    names = ("in_channels", "out_channels", "in_size", "kernel", "stride", "padding", "groups")
    found = {}
    for row in csv.DictReader(io.StringIO(path.read_text())):
        shape = tuple(int(row[name]) for name in names) if row["part"] == "conv" else ()
        key = f"{shape}-W{row['weight_bits']}A{row['act_bits']}" if shape else row["part"]
        found[key] = (row["latency_ms"], row["energy_mj"])
    return found


class BlockCosts:
    """The costs of a space's networks by a table: blocks are looked up once."""

    def __init__(self, macro: Stagewise, table: BitTable) -> None:
        self.macro = macro
        self.table = table
        self._sizes = place_sizes(macro)
        self._known: dict[tuple[str, int, int, BlockBits], dict[str, float]] = {}

    def block(self, place: Place, kernel: int, middle: int, bits: BlockBits) -> dict[str, float]:
        at = (place.name, kernel, middle, bits)
        if at not in self._known:
            shapes = shapes_of(self.macro.block(place, kernel, middle), self._sizes[place.name], bits)
            self._known[at] = self.table.shapes([shape.key for shape in shapes])
        return self._known[at]

    def of(self, genotype: Genotype, bits: Sequence[BlockBits]) -> dict[str, float]:
        """`latency_s` and `energy_j` (where the table has it) of a network; bits: of its blocks."""
        total = dict(self.table.ends)
        for (place, kernel, middle), each in zip(self.macro.blocks(genotype), bits, strict=True):
            for name, value in self.block(place, kernel, middle, each).items():
                total[name] += value
        return total

    def least(self) -> dict[str, float]:
        """What the cheapest network costs, by each measure for itself."""
        total = dict(self.table.ends)
        for place in self.macro.places:
            if place.index <= self.macro.stages[place.stage - 1].depths[0]:
                every = [self.block(place, *option) for option in place_options(self.macro, place)]
                for name in total:
                    total[name] += min(each[name] for each in every)
        return total
