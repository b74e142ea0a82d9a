"""Memory levels: which there are, where each really ends, and how fast each is read.

The system's word on cache sizes is taken where there is one, since it names instances and who shares them; where there
is none (many virtual machines and ARM boards), the steps of the latency curve give the sizes. Either way the read
curve says how much of a level really answers at its rate: a shared last level is often half taken by neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from headway.core.target import MemoryLevel
from headway.hardware.bench import Bench
from headway.hardware.machine import Cache, Machine

STEP = 1.7
"""A latency this many times a plateau's begins the next level. Levels of real machines lie 2.5 to 10 times apart."""

SMALLEST_BYTES = 8 << 10
LARGEST_CACHE_BYTES = 128 << 20
"""Range of the latency curve that looks for caches nobody names."""

MAX_DRAM_BYTES = 1 << 30


def steps(curve: Sequence[tuple[int, float]]) -> list[int]:
    """Sizes after which latency leaves a plateau: [(bytes, seconds)] rising in bytes -> one size a cache level.

    A plateau needs two neighbouring points within `STEP`; the slopes between plateaus are no levels.
    """
    ends: list[int] = []
    base: float | None = None
    for (size, here), (_, following) in pairwise(curve):
        if base is None:
            if following <= here * STEP:
                base = here
            continue
        if following > base * STEP:
            ends.append(size)
            base = None
    return ends


def find_caches(bench: Bench) -> list[Cache]:
    """Caches from the latency curve alone; sizes are rounded up to a power of two, sharing is unknown."""
    sizes = []
    size = float(SMALLEST_BYTES)
    while size <= LARGEST_CACHE_BYTES:
        sizes.append(int(size) // 64 * 64)
        size *= math.sqrt(2)
    ends = steps([(size, bench.latency(size)) for size in sizes])
    return [Cache(level, 1 << (end - 1).bit_length(), 1) for level, end in enumerate(ends, 1)]


def effective_end(size_bytes: int, rate: Callable[[int], float], full: float, below: float, points: int) -> int:
    """Largest size up to `size_bytes` that is read nearer to this level's rate `full` than to the next one's `below`.

    `rate(size)` measures. Nearness is on a logarithmic scale: the border is the geometric mean of both rates.
    """
    border = math.sqrt(full * below)
    for point in range(points):
        size = size_bytes * (points - point) // points
        if rate(size) >= border:
            return size
    return size_bytes // (2 * points)


def _working_set(cache: Cache, inner_bytes: int, threads: int) -> int:
    """Bytes per core that live in `cache` and not in the level inside it, when `threads` cores share an instance."""
    share = cache.size_bytes // max(1, threads)
    return max(share // 2, min(2 * inner_bytes, share * 3 // 4)) // 1024 * 1024


def measure_levels(machine: Machine, bench: Bench, points: int) -> tuple[MemoryLevel, ...]:
    """Every level with its rates and latency. `points`: sizes tried per level for where it really ends."""
    caches = [cache for cache in machine.caches if cache.level] or find_caches(bench)
    levels: list[MemoryLevel] = []
    inner = 0
    for cache in caches:
        threads = min(cache.shared_by, machine.cores)
        alone, crowded = _working_set(cache, inner, 1), _working_set(cache, inner, threads)
        levels.append(
            MemoryLevel(
                level=f"L{cache.level}",
                size_bytes=cache.size_bytes,
                read_bytes_per_s=bench.read(crowded, every=True),
                read_bytes_per_s_one_core=bench.read(alone, every=False),
                latency_s=bench.latency(max(alone // 4, min(2 * inner, alone))),
                shared_by=cache.shared_by,
            )
        )
        inner = cache.size_bytes
    levels.append(_dram(machine, bench, inner))
    return (*(_with_end(level, below, bench, points) for level, below in pairwise(levels)), levels[-1])


def _dram(machine: Machine, bench: Bench, last_cache_bytes: int) -> MemoryLevel:
    room = machine.available_bytes // 4
    wanted = max(64 << 20, min(8 * last_cache_bytes, MAX_DRAM_BYTES))
    alone = max(1 << 20, min(wanted, room))
    each = max(1 << 20, min(max(wanted // machine.cores, 32 << 20), room // machine.cores))
    return MemoryLevel(
        level="DRAM",
        size_bytes=machine.ram_bytes,
        read_bytes_per_s=bench.read(each, every=True),
        read_bytes_per_s_one_core=bench.read(alone, every=False),
        latency_s=bench.latency(max(alone // 2, 1 << 20)),
        shared_by=machine.cores,
    )


def _with_end(level: MemoryLevel, below: MemoryLevel, bench: Bench, points: int) -> MemoryLevel:
    full, next_rate = level.read_bytes_per_s_one_core, below.read_bytes_per_s_one_core
    if points < 1 or next_rate >= full:
        return level
    end = effective_end(level.size_bytes, lambda size: bench.read(size, every=False), full, next_rate, points)
    return MemoryLevel(**{**vars(level), "effective_bytes": end})
