"""Interleaved timing of the look-up kernels and their rivals, one product in cache or all layers in turn.

Every product is timed on its own in native code (5 to 100 us), and a sample is the sum over the layers of the lower
quartile of a few rounds: products during which another process took the core fall out, on a busy machine too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.measure import AGAIN, Timing, conditions
from headway.core.progress import Task
from headway.core.statistics import median_ratio
from headway.core.weight import F32
from headway.kernels.cpu import _cpu
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.quantizers import AffineCodes, rtn

Seconds = npt.NDArray[np.float64]
"""Of each layer's product, (layers,)."""

GROUP = 64
BITS = (2, 3, 4)
LOOK_UP, READ = "look-up, 3 bits", "plain read, 3 bits"
INTEGER, IN_PLACE, FLOAT = "dequantise to int8", "multiply fields in place", "dequantise to float"
RIVALS = (INTEGER, IN_PLACE, FLOAT)
"""In the order of kernels/cpu/lut_rival.h."""

SAMPLE_ROUNDS = 5
"""Rounds that make one sample."""

Arms = Mapping[str, Callable[[], Seconds]]


class Layers:
    """The linear layers of a model in their order: bit planes of 2, 3 and 4 bits, and the rivals' forms of the 3.

    The codes are rounded to nearest: a kernel's time does not depend on them.
    """

    def __init__(self, values: Sequence[F32], task: Task) -> None:
        """values: one (out, in) matrix per layer."""
        self.planes: dict[int, list[Any]] = {bits: [] for bits in BITS}
        self.rivals: dict[str, list[Any]] = {name: [] for name in RIVALS}
        widest = max(value.shape[1] for value in values)
        self.x = np.random.default_rng(0).standard_normal((1, -(-widest // 64) * 64), dtype=np.float32)
        for value in values:
            for bits in BITS:
                codes = rtn(value, bits, GROUP)
                self.planes[bits].append(_planes(codes))
                if bits == 3:
                    self._add_rivals(codes)
            task.advance()

    def _add_rivals(self, codes: AffineCodes) -> None:
        scale, minimum = (np.asarray(a, np.float16).view(np.uint16) for a in (codes.scale, codes.minimum))
        for kind, name in enumerate(RIVALS):
            self.rivals[name].append(_cpu.pack_rival(kind, codes.codes, scale, minimum, GROUP))

    @property
    def nbytes(self) -> int:
        """Packed bytes of all layers at 3 bits."""
        return sum(native.nbytes for native in self.planes[3])

    def largest_within(self, limit_bytes: float) -> int:
        """Index of the largest layer whose 3-bit form fits `limit_bytes` (the smallest layer, if none does)."""
        sizes = [native.nbytes for native in self.planes[3]]
        fitting = [size for size in sizes if size <= limit_bytes]
        return sizes.index(max(fitting) if fitting else min(sizes))

    def in_cache(self, layer: int, passes: int = 8) -> Arms:
        """One layer again and again on one thread: the median of `passes` products in a row."""

        def hot(native: Any) -> Callable[[], Seconds]:
            return lambda: np.median(_cpu.time_matmul([native], self.x, passes + 2, 1)[2:], axis=0)

        arms = {name: hot(natives[layer]) for name, natives in self.rivals.items()}
        return {**arms, LOOK_UP: hot(self.planes[3][layer])}

    def in_turn(self, threads: int) -> Arms:
        """All layers, each once: every arm evicts the others' weights, so they come from DRAM if caches are smaller."""

        def walk(natives: list[Any]) -> Callable[[], Seconds]:
            return lambda: _cpu.time_matmul(natives, self.x, 1, threads)[0]

        arms = {name: walk(natives) for name, natives in self.rivals.items()}
        arms |= {f"look-up, {bits} bits": walk(natives) for bits, natives in self.planes.items()}
        return {**arms, READ: lambda: _cpu.time_read(self.planes[3], 1, threads)[0]}

    def tables_s(self, widths: Sequence[int]) -> float:
        """Seconds of building the tables of one vector of each of these widths, on one thread."""
        of_width = {native.shape[1]: native for native in self.planes[3]}
        once = {width: float(np.median(_cpu.time_form(of_width[width], self.x, 200))) for width in set(widths)}
        return sum(once[width] for width in widths)


def _planes(codes: AffineCodes) -> Any:
    weight = BitPlanes.from_codes(codes.codes, codes.scale, codes.minimum, bits=codes.bits, group_size=codes.group_size)
    return weight.native()


def interleave(arms: Arms, baseline: str, samples: int, seed: int, task: Task) -> Timing:
    """Each round runs every arm in a random order, the baseline twice (the arm `again`)."""
    everyone = {**arms, AGAIN: arms[baseline]}
    generator = random.Random(seed)
    calls = dict.fromkeys(everyone, SAMPLE_ROUNDS)
    timing = Timing(baseline, seed, {name: [] for name in everyone}, calls, conditions=conditions())
    for _ in range(samples):
        rounds: dict[str, list[Seconds]] = {name: [] for name in everyone}
        for _ in range(SAMPLE_ROUNDS):
            order = tuple(generator.sample(sorted(everyone), len(everyone)))
            for name in order:
                rounds[name].append(everyone[name]())
        for name, seconds in rounds.items():
            timing.samples[name].append(float(np.quantile(np.stack(seconds), 0.25, axis=0).sum()))
        timing.orders.append(order)
        task.advance()
    timing.finished = True
    return timing


def ratio(timing: Timing, arm: str, to: str) -> float:
    """Median of the paired ratios of time, arm / to."""
    return median_ratio(timing.samples[arm], timing.samples[to]).value
