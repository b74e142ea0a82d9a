"""Random products of every packed form with awkward shapes and numbers, for the levels to agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights.bitplanes import to_planes

KINDS = ("f32", "f16", "bf16", "int4", "int8", "uniform planes", "binary planes")
INTEGER = ("int4", "int8", "uniform planes", "binary planes")
AWKWARD = (np.nan, np.inf, -np.inf, 1e-42, -1e-45, 3e38, -0.0)

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Case:
    """A weight that can be packed for any of its levels, and activations (rows, in)."""

    kind: str
    pack: Callable[[str], Any]
    levels: tuple[str, ...]
    x: Floats


def spoil(values: Floats, random: np.random.Generator) -> Floats:
    """NaN, infinities, denormals, huge numbers and a row of zeros, each now and then."""
    rows, columns = values.shape
    for number in AWKWARD:
        if random.random() < 0.3:
            values[random.integers(rows), random.integers(columns)] = number
    if random.random() < 0.5:
        values[random.integers(rows)] = 0
    return values


def draw(seed: int) -> Case:
    """The case of that number: rows, outputs and columns with tails 1 to 65."""
    random = np.random.default_rng([20, seed])
    kind = KINDS[seed % len(KINDS)]
    rows, out = (int(n) for n in random.integers(1, 66, 2))
    columns = int(random.integers(1, 66)) + int(random.choice([0, 64, 192, 576]))
    x = spoil(random.standard_normal((rows, columns)).astype(np.float32), random)
    if kind in INTEGER[:2]:
        return Case(kind, _integers(random, int(kind[3]), out, columns), cpu.levels(), x)
    if kind in INTEGER:
        return Case(kind, _planes(random, kind == "uniform planes", out, columns), tuple(_cpu.lut_levels()), x)
    values = random.standard_normal((out, columns)).astype(np.float32)
    if random.random() < 0.3:
        values = spoil(values, random)
    with np.errstate(over="ignore"):
        stored = {
            "f32": values,
            "f16": values.astype(np.float16),
            "bf16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }[kind]
    return Case(kind, lambda _: cpu.pack_dense(stored), cpu.levels(), x)


def _integers(random: np.random.Generator, bits: int, out: int, columns: int) -> Callable[[str], Any]:
    group = int(random.choice((16, 32, 48, 64, 96, 128, 1 << 20)))
    grid = (out, -(-columns // group))
    codes = random.integers(0, 1 << bits, (out, columns), dtype=np.uint8)
    scales, minima = random.standard_normal((2, *grid)).astype(np.float32)
    if random.random() < 0.5:  # kept in half precision where that loses nothing
        scales, minima = (grid.astype(np.float16).astype(np.float32) for grid in (scales, minima))
    low = minima if random.random() < 0.5 else None
    zero = int(random.integers(16))
    pack = cpu.pack_int4 if bits == 4 else cpu.pack_int8
    return lambda _: pack(codes, scales, low, group, zero)


def _planes(random: np.random.Generator, uniform: bool, out: int, columns: int) -> Callable[[str], Any]:
    bits, group = int(random.integers(1, 5)), int(random.choice((4, 20, 32, 64, 96, 128)))
    groups = -(-columns // group)
    planes = to_planes(random.integers(0, 1 << bits, (out, columns), dtype=np.uint8), bits)
    half = random.random() < 0.5
    scale = random.standard_normal((1 if uniform else bits, out, groups))
    offset = random.standard_normal((out, groups))
    kept = [a.astype(np.float16).view(np.uint16) if half else a.astype(np.float32) for a in (scale, offset)]
    segment, crossover = int(random.choice((32, 64))), int(random.choice((0, 16)))
    return lambda level: _cpu.pack_lut(planes, *kept, columns, group, uniform, segment, crossover, level=level)
