"""Timed products of `bipolar-int`: one matrix at many widths, and a model's layers from DRAM beside their rivals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from headway.core.progress import Task
from headway.hardware.bench import Clears
from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights.bipolar import BipolarWeight, measured_count_rows
from headway.llm.weights.grouped import Int8Weight, group_count
from headway.llm.weights.kernel_timing import Arms, Seconds

ROWS, COLUMNS, BATCH = 512, 2048, 16
"""Rows, columns and activation rows of the product whose time is fitted over the widths: at most some ms each."""
WIDTHS = (1, 2, 3, 4, 8)
ROOF = "registers alone"
ROOF_BITS = 1e9

FLOAT, TORCH, INT8, TORCH_INT8 = "float32", "float32, torch", "int8", "int8, torch"
PAIRS = ((1, 1), (2, 4), (3, 4), (2, 8), (4, 8))
Shape = tuple[int, int]


def pair(n: int, m: int) -> str:
    return f"W{n}A{m}"


def widths(level: str, seed: int) -> Arms:
    """Counting at every pair of widths, one scale per row and token, one thread; and the roof for ROOF_BITS bits."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((BATCH, COLUMNS), dtype=np.float32)
    arms: dict[str, Any] = {}
    for n in WIDTHS:
        codes = rng.integers(0, 1 << n, (ROWS, COLUMNS), dtype=np.uint8)
        scale = np.ones((ROWS, 1), np.float16)
        for m in WIDTHS:
            weight = BipolarWeight.from_codes(codes, scale, bits=n, group_size=0, act_bits=m, act_group=0)
            native = weight.packed(1 << 30, level)
            arms[pair(n, m)] = lambda native=native: _cpu.time_matmul([[native]], x, 6, 1).min(axis=0)
    arms[ROOF] = lambda: np.array([ROOF_BITS / _cpu.bipolar_roof(level, 3)])
    return arms


class Decoding:
    """One token through layers of the given shapes, read from DRAM: bipolar widths, float32 and 8 bits.

    Codes are random: a kernel's time does not depend on them. Layers that read the same activations stay together.
    """

    def __init__(self, groups: Sequence[Sequence[Shape]], level: str, threads: int, clears: Clears, task: Task) -> None:
        import torch

        rng = np.random.default_rng(0)
        self.threads, self.clears = threads, clears
        self.natives: dict[str, list[list[Any]]] = {}
        floats = {s: rng.standard_normal(s, dtype=np.float32) for s in {s for group in groups for s in group}}
        bytes_of = {s: rng.integers(-127, 128, s, dtype=np.int8) for s in floats}
        for n, m in PAIRS:
            made = {s: weight(s, n, m) for s in floats}
            limit = measured_count_rows(n, m, 128, 64, level)
            self.natives[pair(n, m)] = [[made[s].packed(limit, level) for s in group] for group in groups]
            task.advance()
        self.natives[FLOAT] = [[cpu.pack_dense(floats[s]) for s in group] for group in groups]
        scale = {s: np.ones((s[0], group_count(s[1], 64)), np.float16) for s in floats}
        eight = {s: Int8Weight(bytes_of[s], scale[s], group_size=64) for s in floats}
        self.natives[INT8] = [[eight[s]._pack() for s in group] for group in groups]
        task.advance()
        flat = [shape for group in groups for shape in group]
        self.torch_floats = [torch.from_numpy(floats[s].copy()) for s in flat]
        self.torch_bytes = [torch.from_numpy(bytes_of[s].copy()).t() for s in flat]
        self.inputs = {s[1]: torch.ones(1, s[1]) for s in floats}
        self.byte_inputs = {s[1]: torch.ones(1, s[1], dtype=torch.int8) for s in floats}
        widest = max(s[1] for s in floats)
        self.x = rng.standard_normal((1, -(-widest // 64) * 64), dtype=np.float32)

    def arms(self) -> Arms:
        native = {name: self._walk(groups) for name, groups in self.natives.items()}
        return {**native, TORCH: self._torch, TORCH_INT8: self._torch_int8}

    def _walk(self, groups: list[list[Any]]) -> Any:
        def run() -> Seconds:
            self.clears.sweep()
            return _cpu.time_matmul(groups, self.x, 1, self.threads, True)[0]

        return run

    def _torch(self) -> Seconds:
        self.clears.sweep()
        seconds = []
        for weight in self.torch_floats:
            x = self.inputs[weight.shape[1]]
            start = time.perf_counter()
            x @ weight.T
            seconds.append(time.perf_counter() - start)
        return np.array(seconds)

    def _torch_int8(self) -> Seconds:
        import torch

        self.clears.sweep()
        seconds = []
        for weight in self.torch_bytes:
            x = self.byte_inputs[weight.shape[0]]
            start = time.perf_counter()
            torch._int_mm(x, weight)
            seconds.append(time.perf_counter() - start)
        return np.array(seconds)


def weight(shape: Shape, n: int, m: int) -> BipolarWeight:
    rng = np.random.default_rng([n, *shape])
    codes = rng.integers(0, 1 << n, shape, dtype=np.uint8)
    scale = np.full((shape[0], group_count(shape[1], 128)), 0.01, np.float16)
    return BipolarWeight.from_codes(codes, scale, bits=n, group_size=128, act_bits=m, act_group=64, rotate=64)
