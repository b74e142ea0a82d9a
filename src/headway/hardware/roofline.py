"""`bound`: whether a piece of work is held back by memory, arithmetic or dispatch on a target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from headway.core.target import Target

Limit = Literal["memory", "compute", "dispatch"]


@dataclass(frozen=True)
class Work:
    """A piece of work: an operator, a layer, a step."""

    name: str
    ops: float
    """Arithmetic operations; a multiply-add is two."""
    nbytes: float
    """Bytes it must move."""
    dtype: str = "f32"
    calls: int = 1
    """Operators dispatched."""
    working_set_bytes: float = 0.0
    """Bytes between two uses of the same data; 0 = `nbytes`."""

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.ops / self.nbytes if self.nbytes else float("inf")


@dataclass(frozen=True)
class Bound:
    """Seconds that each resource needs at the least. The largest is the limit."""

    work: Work
    memory_s: float
    compute_s: float
    dispatch_s: float
    ridge: float
    """Operations per byte at which memory and arithmetic take equally long here."""

    @property
    def limit(self) -> Limit:
        seconds: dict[Limit, float] = {
            "dispatch": self.dispatch_s, "memory": self.memory_s, "compute": self.compute_s,
        }  # fmt: skip
        return max(seconds, key=lambda name: seconds[name])

    @property
    def floor_s(self) -> float:
        """No implementation of this work is faster: memory and arithmetic may overlap, dispatch precedes both."""
        return max(self.memory_s, self.compute_s, self.dispatch_s)


def bound(work: Work, target: Target, threads: int, call_s: float | None = None) -> Bound:
    """The bound of `work` on `threads` threads. `call_s`: cost of one dispatched operator (default: the target's).

    Raises `BadInput` when the target has no rate for the data type.
    """
    level = target.level_for(work.working_set_bytes or work.nbytes, threads)
    read = target.read_rate(level, threads)
    compute = target.compute_rate(work.dtype, threads)
    dispatch = target.dispatch_s if call_s is None else call_s
    return Bound(work, work.nbytes / read, work.ops / compute, dispatch * work.calls, compute / read)


def limits(works: Iterable[Work], target: Target, threads: int) -> dict[Limit, float]:
    """Seconds lost to each limit, over all works: where the time goes at the least."""
    totals: dict[Limit, float] = {"memory": 0.0, "compute": 0.0, "dispatch": 0.0}
    for work in works:
        found = bound(work, target, threads)
        totals[found.limit] += found.floor_s
    return totals


def product(name: str, rows: float, out_features: int, in_features: int, nbytes: float, dtype: str = "f32") -> Work:
    """The work of `rows` activations times a matrix stored in `nbytes`, float32 activations in and out."""
    return Work(
        name,
        ops=2.0 * rows * out_features * in_features,
        nbytes=nbytes + 4.0 * rows * (out_features + in_features),
        dtype=dtype,
    )
