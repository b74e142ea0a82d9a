"""The look-up kernels and their rivals as arms of a timing: one product in cache or all layers in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from headway.core.progress import Task
from headway.core.weight import F32
from headway.kernels.cpu import _cpu
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.kernel_timing import Arms, Seconds
from headway.llm.weights.quantizers import AffineCodes, rtn

GROUP = 64
BITS = (2, 3, 4)
LOOK_UP, READ = "look-up, 3 bits", "plain read, 3 bits"
INTEGER, IN_PLACE, FLOAT = "dequantise to int8", "multiply fields in place", "dequantise to float"
RIVALS = (INTEGER, IN_PLACE, FLOAT)
"""In the order of kernels/cpu/lut_rival.h."""


class Layers:
    """The linear layers of a model in their order: bit planes of 2, 3 and 4 bits, and the rivals' forms of the 3.

    Layers that read the same activations (q, k, v; gate, up) stay together, as the runtime multiplies with them. The
    codes are rounded to nearest: a kernel's time does not depend on them.
    """

    def __init__(self, groups: Iterable[Sequence[F32]], task: Task) -> None:
        """groups: the (out, in) matrices of layers that read the same activations, in the model's order."""
        self.planes: dict[int, list[list[Any]]] = {bits: [] for bits in BITS}
        self.rivals: dict[str, list[list[Any]]] = {name: [] for name in RIVALS}
        for group in groups:
            rounded = {bits: [rtn(value, bits, GROUP) for value in group] for bits in BITS}
            for bits in BITS:
                self.planes[bits].append([_planes(codes) for codes in rounded[bits]])
            for kind, name in enumerate(RIVALS):
                self.rivals[name].append([_rival(kind, codes) for codes in rounded[3]])
            task.advance(len(group))
        self.widths = [group[0].shape[1] for group in self.planes[3]]
        self.x = np.random.default_rng(0).standard_normal((1, -(-max(self.widths) // 64) * 64), dtype=np.float32)

    @property
    def nbytes(self) -> int:
        """Packed bytes of all layers at 3 bits."""
        return sum(native.nbytes for group in self.planes[3] for native in group)

    def largest_within(self, limit_bytes: float) -> tuple[int, int]:
        """(group, place) of the largest layer whose 3-bit form fits `limit_bytes` (the smallest, if none does)."""
        sizes = {(g, i): native.nbytes for g, group in enumerate(self.planes[3]) for i, native in enumerate(group)}
        fitting = {place: size for place, size in sizes.items() if size <= limit_bytes}
        return max(fitting, key=lambda p: fitting[p]) if fitting else min(sizes, key=lambda p: sizes[p])

    def in_cache(self, place: tuple[int, int], passes: int = 8) -> Arms:
        """One layer again and again on one thread: the median of `passes` products in a row."""

        def hot(groups: list[list[Any]]) -> Callable[[], Seconds]:
            native = groups[place[0]][place[1]]
            return lambda: np.median(_cpu.time_matmul([[native]], self.x, passes + 2, 1)[2:], axis=0)

        return {**{name: hot(groups) for name, groups in self.rivals.items()}, LOOK_UP: hot(self.planes[3])}

    def in_turn(self, threads: int) -> Arms:
        """All layers, each once: every arm evicts the others' weights, so they come from DRAM if caches are smaller."""

        def walk(groups: list[list[Any]]) -> Callable[[], Seconds]:
            return lambda: _cpu.time_matmul(groups, self.x, 1, threads)[0]

        arms = {name: walk(groups) for name, groups in self.rivals.items()}
        arms |= {f"look-up, {bits} bits": walk(groups) for bits, groups in self.planes.items()}
        return {**arms, READ: lambda: _cpu.time_read(self.planes[3], 1, threads)[0]}

    def tables_s(self) -> float:
        """Seconds of building all tables of one token, one vector for each group, on one thread."""
        of_width = {group[0].shape[1]: group[0] for group in self.planes[3]}
        once = {width: float(np.median(_cpu.time_form(native, self.x, 200))) for width, native in of_width.items()}
        return sum(once[width] for width in self.widths)


def _rival(kind: int, codes: AffineCodes) -> Any:
    scale, minimum = (np.asarray(a, np.float16).view(np.uint16) for a in (codes.scale, codes.minimum))
    return _cpu.pack_rival(kind, codes.codes, scale, minimum, GROUP)


def _planes(codes: AffineCodes) -> Any:
    weight = BitPlanes.from_codes(codes.codes, codes.scale, codes.minimum, bits=codes.bits, group_size=codes.group_size)
    return weight.native()
