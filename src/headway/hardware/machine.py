"""`Machine`: the facts of this machine that need no measuring: CPU, caches, usable cores, memory and their limits.

Everything is read below `root`, so that a test can lay out another machine's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ISA_PREFIXES = (
    *("sse", "ssse", "avx", "amx", "fma", "f16c", "bmi", "popcnt", "gfni", "vaes"),  # x86
    *("asimd", "sve", "sme", "i8mm", "bf16", "fphp"),  # ARM
)
"""Flags of /proc/cpuinfo that kernels may care about begin with one of these."""

MEMORY_GRAIN_BYTES = 64 << 20
"""MemTotal moves by some kilobytes from boot to boot; the fingerprint rounds it to this."""


@dataclass(frozen=True)
class Cache:
    """One data or unified cache of the first usable core."""

    level: int
    size_bytes: int
    shared_by: int
    """Usable cores that share it."""


@dataclass(frozen=True)
class Machine:
    """Facts of a machine. `cpus` are the usable logical CPUs by number."""

    cpu: str
    architecture: str
    flags: tuple[str, ...]
    cpus: tuple[int, ...]
    quota: float | None
    """CPUs' worth of time the control group allows; None: no limit."""
    ram_bytes: int
    available_bytes: int
    kernel: str
    caches: tuple[Cache, ...]
    forced_isa: str = ""
    """HEADWAY_ISA: kernels below what the processor has are measured as another machine's."""

    @property
    def cores(self) -> int:
        """Threads that can run at once: affinity, cut by the quota (a fraction of a core would be throttled)."""
        return len(self.cpus) if self.quota is None else max(1, min(len(self.cpus), int(self.quota)))

    @property
    def isa(self) -> tuple[str, ...]:
        return tuple(flag for flag in self.flags if flag.startswith(ISA_PREFIXES) and flag != "smep")

    @property
    def name(self) -> str:
        return f"{self.cpu}, {self.cores} core{'s' * (self.cores != 1)}, {self.ram_bytes / 2**30:.0f} GiB"

    @property
    def fingerprint(self) -> str:
        """Hex digest: equal for the same CPU, cores, memory and kernel, whatever else runs."""
        facts = {
            "cpu": self.cpu,
            "architecture": self.architecture,
            "flags": sorted(self.flags),
            "cores": self.cores,
            "caches": [(cache.level, cache.size_bytes, cache.shared_by) for cache in self.caches],
            "ram": round(self.ram_bytes / MEMORY_GRAIN_BYTES),
            "kernel": self.kernel,
        }
        if self.forced_isa:
            facts["forced_isa"] = self.forced_isa
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_machine(root: str | Path = "/") -> Machine:
    """The machine whose `/proc` and `/sys` lie under `root`. What cannot be read is left out, never guessed."""
    root = Path(root)
    cpu, flags = _cpu(root)
    cpus = _affinity(root)
    total, available = _memory(root)
    limit, _ = memory_limit(root)
    return Machine(
        cpu=cpu,
        architecture=platform.machine(),
        flags=flags,
        cpus=cpus,
        quota=cpu_quota(root),
        ram_bytes=min(total, limit) if limit else total,
        available_bytes=min(available, room_bytes(root)),
        kernel=_text(root / "proc/sys/kernel/osrelease") or platform.release(),
        caches=tuple(_caches(root, cpus)),
        forced_isa=os.environ.get("HEADWAY_ISA", ""),
    )


def _text(path: Path) -> str:
    """The file's text without surrounding space; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    """Model name and flags of the first processor in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, found, value = line.partition(":")
        if found:
            fields.setdefault(key.strip(), value.strip())
    part = [fields[key] for key in ("CPU implementer", "CPU part") if key in fields]
    model = fields.get("model name") or fields.get("Model") or fields.get("Hardware") or " ".join(part)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return model or platform.processor() or platform.machine() or "unknown CPU", tuple(flags)


def _affinity(root: Path) -> tuple[int, ...]:
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return tuple(cpu_list(line.partition(":")[2])) or (0,)
    return tuple(range(os.cpu_count() or 1))


def cpu_list(text: str) -> list[int]:
    """`0-2,5` -> [0, 1, 2, 5]; parts that are no numbers are left out."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        low, _, high = part.strip().partition("-")
        if low.isdecimal() and (high.isdecimal() or not high):
            cpus += range(int(low), int(high or low) + 1)
    return cpus


def _memory(root: Path) -> tuple[int, int]:
    """(total, available) bytes from /proc/meminfo."""
    sizes: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdecimal():
            sizes[words[0]] = int(words[1]) * 1024
    if "MemTotal" in sizes:
        return sizes["MemTotal"], sizes.get("MemAvailable", sizes.get("MemFree", sizes["MemTotal"]))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total


def _caches(root: Path, cpus: tuple[int, ...]) -> Iterator[Cache]:
    """Data and unified caches of the first usable core, innermost first; none where sysfs says nothing."""
    found: dict[int, Cache] = {}
    for index in sorted((root / f"sys/devices/system/cpu/cpu{cpus[0]}/cache").glob("index[0-9]*")):
        level, size = _text(index / "level"), size_bytes(_text(index / "size"))
        if _text(index / "type") in ("Data", "Unified") and level.isdecimal() and size:
            sharing = set(cpu_list(_text(index / "shared_cpu_list"))) & set(cpus)
            found[int(level)] = Cache(int(level), size, max(1, len(sharing)))
    yield from (found[level] for level in sorted(found))


def size_bytes(text: str) -> int:
    """`48K`, `2M`, `1024` -> bytes; 0 for anything else."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    return int(digits) * unit if digits.isdecimal() else 0


# Control groups


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and its ancestors for `controller`, innermost first, v2 and v1.

    In a container the path that /proc names is often not the one mounted: only folders that exist are given.
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            bases = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            bases = [mount / controllers, mount / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for base in bases:
            for depth in range(len(parts), -1, -1):
                folder = base.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


def cpu_quota(root: str | Path = "/") -> float | None:
    """CPUs' worth of time per second that the control groups allow; None without a limit."""
    quotas = []
    for folder in _groups(Path(root), "cpu"):
        words = _text(folder / "cpu.max").split()
        if not words:
            words = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min((quota for quota in quotas if quota > 0), default=None)


def memory_limit(root: str | Path = "/") -> tuple[int | None, int | None]:
    """(bytes the control groups allow, bytes of it still free); None without a limit.

    Free counts the inactive page cache, which the kernel gives back before it refuses memory.
    """
    total, _ = _memory(Path(root))
    limits: list[int] = []
    free: list[int] = []
    for folder in _groups(Path(root), "memory"):
        text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if not text.isdecimal() or int(text) >= total:
            continue  # "max", or version 1's huge number: no limit
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        limits.append(int(text))
        taken = int(used) - _inactive_file(folder) if used.isdecimal() else 0
        free.append(max(0, int(text) - max(0, taken)))
    return min(limits, default=None), min(free, default=None)


def room_bytes(root: str | Path = "/") -> int:
    """Bytes this process may still take: what the machine and the control groups have free, and RLIMIT_AS leaves."""
    root = Path(root)
    _, available = _memory(root)
    _, free = memory_limit(root)
    return min(room for room in (available, free, _address_room(root)) if room is not None)


def _address_room(root: Path) -> int | None:
    """Address space that RLIMIT_AS leaves; None without a limit."""
    found = re.search(r"^Max address space +(\d+) ", _text(root / "proc/self/limits"), re.MULTILINE)
    pages = _text(root / "proc/self/statm").split()
    if found is None or not pages or not pages[0].isdecimal():
        return None
    return max(0, int(found[1]) - int(pages[0]) * os.sysconf("SC_PAGE_SIZE"))


def _inactive_file(folder: Path) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0
