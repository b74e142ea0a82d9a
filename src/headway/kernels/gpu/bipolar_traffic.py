"""Global-memory traffic of bipolar-INT's matmul, block by block: recovery inside a block against plane by plane.

    recover   block = (rows x n planes) by (columns x m planes): its n m products are weighted and added where they are
              made, and one int32 tile is written (paper, section on recovery in shared memory)
    planes    the n M by m N product of single bits in blocks of the same size, each writing its int32 tile; a second
              kernel reads the n m tiles of an output and writes their weighted sum
The walk moves every byte through `Memory`, which counts. Given the operands it computes the product too: what is
counted is enough for the right result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
PARTIAL_BYTES = 4


@dataclass
class Memory:
    """Arrays in global memory, and the bytes that went in and out of each."""

    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def load(self, name: str, at: tuple[Any, ...], nbytes: int) -> Any:
        self.read[name] = self.read.get(name, 0) + nbytes
        return self.arrays[name][at] if name in self.arrays else None

    def store(self, name: str, at: tuple[Any, ...], value: Any, nbytes: int) -> None:
        self.written[name] = self.written.get(name, 0) + nbytes
        if value is not None:
            self.arrays[name][at] = value

    @property
    def output_bytes(self) -> int:
        """Written by the kernels that multiply."""
        return self.written.get("partial", 0) or self.written.get("y", 0)

    @property
    def total_bytes(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())


@dataclass(frozen=True)
class Product:
    """Y = W X^T: W (m_rows, k) of `bits`, X (n_rows, k) of `act_bits`, in tiles of `tile` x `tile` outputs."""

    rows: int
    batch: int
    columns: int
    bits: int
    act_bits: int
    tile: int = 64

    def memory(self, w: I64 | None, x: I64 | None) -> Memory:
        """w, x: the odd levels, or none to count alone."""
        memory = Memory()
        if w is not None and x is not None:
            memory.arrays = {
                "w": _planes(w, self.bits),
                "x": _planes(x, self.act_bits),
                "y": np.zeros((self.rows, self.batch), np.int64),
                "partial": np.zeros((self.bits, self.act_bits, self.rows, self.batch), np.int64),
            }
        return memory

    def recover(self, w: I64 | None = None, x: I64 | None = None) -> Memory:
        memory = self.memory(w, x)
        for at, size in self._tiles():
            total: Any = None
            ours = [self._plane(memory, "w", i, at[0]) for i in range(self.bits)]
            theirs = [self._plane(memory, "x", j, at[1]) for j in range(self.act_bits)]
            for i, a in enumerate(ours):
                for j, b in enumerate(theirs):
                    if a is not None:
                        part = (a @ b.T) << (i + j)
                        total = part if total is None else total + part
            memory.store("y", at, total, size * PARTIAL_BYTES)
        return memory

    def planes(self, w: I64 | None = None, x: I64 | None = None) -> Memory:
        memory = self.memory(w, x)
        pairs = [(i, j) for i in range(self.bits) for j in range(self.act_bits)]
        for at, size in self._tiles():
            for i, j in pairs:
                a, b = self._plane(memory, "w", i, at[0]), self._plane(memory, "x", j, at[1])
                memory.store("partial", (i, j, *at), None if a is None else a @ b.T, size * PARTIAL_BYTES)
        for at, size in self._tiles():
            total: Any = None
            for i, j in pairs:
                part = memory.load("partial", (i, j, *at), size * PARTIAL_BYTES)
                if part is not None:
                    total = (part << (i + j)) if total is None else total + (part << (i + j))
            memory.store("y", at, total, size * PARTIAL_BYTES)
        return memory

    def _plane(self, memory: Memory, name: str, plane: int, rows: slice) -> Any:
        return memory.load(name, (plane, rows), (rows.stop - rows.start) * -(-self.columns // 8))

    def _tiles(self) -> Iterator[tuple[tuple[slice, slice], int]]:
        for r in range(0, self.rows, self.tile):
            for c in range(0, self.batch, self.tile):
                rows, columns = slice(r, min(self.rows, r + self.tile)), slice(c, min(self.batch, c + self.tile))
                yield (rows, columns), (rows.stop - rows.start) * (columns.stop - columns.start)


def _planes(levels: I64, bits: int) -> I64:
    """Odd levels -> planes of +-1, (bits, rows, columns)."""
    codes = (levels + (2**bits - 1)) >> 1
    return np.stack([2 * ((codes >> i) & 1) - 1 for i in range(bits)])
