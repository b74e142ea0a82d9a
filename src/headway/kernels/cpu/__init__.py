"""Native CPU kernels: packed weights, the thread pool, and what this machine can run.

Everything here works over `_cpu`, the C++ extension. A packed weight (`NativeWeight`) knows its bytes, its exact
float32 value and its matmul; `mode="exact"` multiplies float32 activations with that exact value, `mode="fast"` is the
kernel that the runtime uses (integer weights: int8 activations, one scale per 32 columns).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

import headway.kernels.cpu._cpu as _cpu

_cpu.isa()  # RuntimeError here for a HEADWAY_ISA that cannot be, not in a thread of the pool

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Mode = Literal["fast", "exact"]


class NativeWeight(Protocol):
    """One matrix W (out, in), packed for its kernel. Immutable."""

    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, padding included: what one matmul reads."""
        ...

    def dequantize(self) -> F32:
        """The exact float32 values, shape (out, in)."""
        ...

    def matmul(self, x: F32, exact: bool = False, threads: int = 0) -> F32:
        """x: (rows, in), C-contiguous -> x @ W.T: (rows, out). `threads` 0: as set."""
        ...

    def gather(self, ids: npt.NDArray[np.int32]) -> F32:
        """Rows of W as float32, shape (len(ids), in)."""
        ...

    def unpack(self) -> tuple[U8, F32, F32 | None]:
        """Codes, scales and minima as given to `pack_int4` or `pack_int8`; ValueError for other kinds."""
        ...


def isa() -> str:
    """Instruction set in use: `avx512`, `avx2` or `portable`. HEADWAY_ISA lowers it; RuntimeError if it cannot."""
    return str(_cpu.isa())


def levels() -> tuple[str, ...]:
    """Instruction sets that can run here, lowest first."""
    return tuple(_cpu.levels())


def features() -> tuple[str, ...]:
    """Extensions beyond the level in use: `vbmi`, `bf16`, `vpopcntdq`, `avx_vnni`."""
    return tuple(_cpu.features())


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """Run with a lower instruction set, for tests and benchmarks; not while another thread runs kernels."""
    before = isa()
    _cpu.set_isa(level)
    try:
        yield
    finally:
        _cpu.set_isa(before)


def threads() -> int:
    """Threads the pool may use, the caller included."""
    return int(_cpu.threads())


def set_threads(count: int) -> None:
    """0: the cores this process may run on. Results are the same, bit for bit, for every count."""
    _cpu.set_threads(count)


def memory() -> dict[str, dict[str, int]]:
    """Bytes of native memory, `current` and `peak`, by owner: `weights`, `kv`, `scratch`, and their `total`."""
    return dict(_cpu.memory())


def reset_peaks() -> None:
    """Start a new peak for every owner at its current value."""
    _cpu.reset_peaks()


def pool_counts() -> dict[str, int]:
    """Phases shared with helper threads, waits that were far too long (`stalls`), phases run alone after one."""
    return dict(_cpu.pool_counts())


def fail_allocation(k: int) -> None:
    """The k-th native allocation from now raises MemoryError; 0: none does. For fault tests."""
    _cpu.fail_allocation(k)


@dataclass(frozen=True)
class Rows:
    """A matrix that is packed piece by piece, so that it need not be in memory whole: `read(begin, end)` gives rows.

    Pieces are asked for in order, each row once; a piece is no longer used when the next is asked for.
    """

    shape: tuple[int, int]
    dtype: npt.DTypeLike
    read: Callable[[int, int], npt.NDArray[Any]]


def _rows(values: npt.NDArray[Any] | Rows) -> Rows:
    if isinstance(values, Rows):
        return values
    return Rows(values.shape, values.dtype, lambda begin, end: values[begin:end])


def pack_dense(values: npt.NDArray[Any] | Rows) -> NativeWeight:
    """values: (out, in) float32 or float16, or uint16 holding bfloat16 bits; stored as given, computed in float32."""
    rows = _rows(values)
    dtype = np.dtype(rows.dtype)
    if dtype == np.float16:
        return _cpu.pack_f16(_pieces(rows, np.float16, np.uint16), *rows.shape)  # type: ignore[no-any-return]
    if dtype == np.uint16:
        return _cpu.pack_bf16(_pieces(rows, np.uint16), *rows.shape)  # type: ignore[no-any-return]
    return _cpu.pack_f32(_pieces(rows, np.float32), *rows.shape)  # type: ignore[no-any-return]


def pack_int4(
    codes: U8 | Rows, scales: npt.NDArray[Any], minima: npt.NDArray[Any] | None, group: int, zero: int = 0
) -> NativeWeight:
    """W = scales * (codes - zero) + minima. Codes (out, in) in 0..15; scales and minima (out, ceil(in / group)).

    `group`: a multiple of 16, or >= in for one group per row; `unpack` of groups that are no multiple of 32 gives
    groups of 16. Scales and minima are kept in float16 where that changes no bit, else in float32. ValueError for
    anything else.
    """
    return _pack_int(_rows(codes), scales, minima, group, 4, zero)


def pack_int8(
    codes: npt.NDArray[np.uint8 | np.int8] | Rows,
    scales: npt.NDArray[Any],
    minima: npt.NDArray[Any] | None,
    group: int,
    zero: int = 0,
) -> NativeWeight:
    """As `pack_int4`, with uint8 codes 0..255, or int8 codes -128..127 with `zero` 0 (`unpack`: code + 128)."""
    rows = _rows(codes)
    return _pack_int(rows, scales, minima, group, 8, zero + 128 if rows.dtype == np.int8 else zero)


def _pieces(rows: Rows, dtype: Any, bits: Any = None) -> Callable[[int, int], npt.NDArray[Any]]:
    """Contiguous pieces of that type, seen as `bits`."""
    return lambda begin, end: np.ascontiguousarray(rows.read(begin, end), dtype).view(bits or dtype)


def _pack_int(
    codes: Rows,
    scales: npt.NDArray[Any],
    minima: npt.NDArray[Any] | None,
    group: int,
    bits: int,
    zero: int,
) -> NativeWeight:
    grids = [None if grid is None else np.asarray(grid, np.float32) for grid in (scales, minima)]
    out, columns = codes.shape
    if group > 32 and group % 32 == 16 and group < columns:
        grids = [None if g is None else np.repeat(g, group // 16, axis=1)[:, : -(-columns // 16)] for g in grids]
        group = 16
    wide, low = (None if grid is None else np.ascontiguousarray(grid) for grid in grids)
    read = _pieces(codes, codes.dtype, np.uint8)
    if codes.dtype == np.int8:
        signed = read
        read = lambda begin, end: signed(begin, end) ^ np.uint8(128)  # noqa: E731
    return _cpu.pack_int(read, out, columns, wide, low, group, bits, zero)  # type: ignore[no-any-return]
