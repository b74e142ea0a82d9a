"""`Bench`: the micro-benchmarks of the native extension, each reduced to one figure by medians over bursts."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol

from headway.core.errors import Lacking

BURST_S = 1e-4
"""A burst is short beside a time slice, so that most bursts run undisturbed and the median is one of those."""

DRAM_BURST_BYTES = 2 << 20


class Instruments(Protocol):
    """What the extension's `probe` submodule offers; every list is one figure a burst."""

    def units(self) -> list[tuple[str, str, str]]: ...
    def compute(self, unit: str, cpus: list[int], burst_s: float, total_s: float) -> list[list[float]]: ...
    def read(self, bytes: int, burst_bytes: int, cpus: list[int], total_s: float) -> list[list[float]]: ...
    def chase(self, bytes: int, cpu: int, total_s: float) -> list[float]: ...
    def barrier(self, cpus: list[int], total_s: float) -> list[float]: ...
    def nothing(self) -> None: ...
    @property
    def Sweeper(self) -> Callable[[int, list[int]], Clears]: ...


class Clears(Protocol):
    """Something that makes the caches forget what they held: the native `Sweeper`, or a test's stand-in."""

    def sweep(self) -> None: ...


def native_module() -> Any:
    """The native extension; raises `Lacking` when it was not built."""
    try:
        return importlib.import_module("headway.kernels.cpu._cpu")
    except ImportError as error:
        raise Lacking(f"the native extension cannot be loaded ({error})", "install headway again") from None


def native_instruments() -> Instruments:
    """The extension's instruments; raises `Lacking` when it was not built."""
    instruments: Instruments = native_module().probe
    return instruments


@dataclass(frozen=True)
class Bench:
    """Measures for `time_s` each, on the logical CPUs `cpus`."""

    instruments: Instruments
    cpus: tuple[int, ...]
    time_s: float

    def read(self, bytes_per_core: int, *, every: bool) -> float:
        """bytes/s of reading `bytes_per_core` again and again, by the first core or by all of them together."""
        cpus = list(self.cpus if every else self.cpus[:1])
        burst = max(64 << 10, min(bytes_per_core * 8, DRAM_BURST_BYTES))
        return _together(self.instruments.read(bytes_per_core, burst, cpus, self.time_s))

    def compute(self, unit: str, *, every: bool) -> float:
        """Operations/s of `unit`."""
        cpus = list(self.cpus if every else self.cpus[:1])
        return _together(self.instruments.compute(unit, cpus, BURST_S, self.time_s))

    def latency(self, size_bytes: int) -> float:
        """Seconds of a dependent load somewhere in `size_bytes`."""
        return statistics.median(self.instruments.chase(size_bytes, self.cpus[0], self.time_s))

    def barrier(self) -> float:
        """Seconds of one barrier between all cores."""
        return statistics.median(self.instruments.barrier(list(self.cpus), self.time_s))

    def crossing(self) -> float:
        """Seconds of one call from Python into the extension and back."""
        return call_seconds(self.instruments.nothing, self.time_s)

    def torch_dispatch(self) -> float | None:
        """Seconds of one tiny torch operator; None without torch."""
        try:
            import torch
        except ImportError:
            return None
        with torch.inference_mode():
            x = torch.ones(1)
            return call_seconds(lambda: torch.add(x, x), self.time_s)


def _together(samples: Sequence[Sequence[float]]) -> float:
    """The threads' median rates added up."""
    return sum(statistics.median(thread) for thread in samples)


def quiet(seconds: Sequence[float]) -> float:
    """The lower quartile: what a call takes when nobody interrupts it.

    Calls of milliseconds are interrupted on a busy machine more often than not. Predictions are made in quiet time;
    a measured run of the session then says how busy the machine is (`correct.py`).
    """
    ordered = sorted(seconds)
    return ordered[(len(ordered) - 1) // 4]


def call_seconds(call: Callable[[], object], time_s: float) -> float:
    """Median seconds of `call()` over bursts of 64, the empty loop's own cost taken off."""
    bursts: list[float] = []
    empty: list[float] = []
    end = time.perf_counter() + time_s
    while len(bursts) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in repeat(None, 64):
            call()
        middle = time.perf_counter()
        for _ in repeat(None, 64):
            pass
        bursts.append(middle - begin)
        empty.append(time.perf_counter() - middle)
    return max(1e-10, (statistics.median(bursts) - statistics.median(empty)) / 64)
