"""Tables for people: a target's rates, and what a prediction is made of."""

from __future__ import annotations

from collections.abc import Iterator

from headway.core.target import Target
from headway.hardware.predict import Prediction

Row = tuple[str, str, str, str]


def probe_table(target: Target) -> list[Row]:
    """(what, one core, all cores, remark) of everything the target holds, formatted."""
    return [*_memory(target), *_compute(target), *_overheads(target), *_kernels(target), *_rest(target)]


def _memory(target: Target) -> Iterator[Row]:
    for level in target.memory:
        shared = f", shared by {level.shared_by}" if level.shared_by > 1 and level is not target.dram else ""
        holds = f", holds {bytes_text(level.holds_bytes)}" if level.effective_bytes else ""
        yield (
            f"{level.level} read",
            f"{level.read_bytes_per_s_one_core / 1e9:.1f} GB/s",
            f"{level.read_bytes_per_s / 1e9:.1f} GB/s",
            f"{bytes_text(level.size_bytes)}{shared}{holds}, {seconds_text(level.latency_s)} a dependent load",
        )


def _compute(target: Target) -> Iterator[Row]:
    for rate in target.compute:
        unit = "G/s bytes" if rate.dtype == "byte" else "Gop/s"
        yield (
            f"{rate.dtype} {rate.unit}",
            f"{rate.ops_per_s_one_core / 1e9:.0f} {unit}",
            f"{rate.ops_per_s / 1e9:.0f} {unit}",
            "",
        )


def _overheads(target: Target) -> Iterator[Row]:
    yield "operator dispatch", seconds_text(target.dispatch_s), "", "one small torch operator"
    yield "native crossing", seconds_text(target.crossing_s), "", "Python to native code and back"
    if target.barrier_s:
        yield "barrier", "", seconds_text(target.barrier_s), "between spinning threads"


def _kernels(target: Target) -> Iterator[Row]:
    for kernel in target.kernels:
        for point in kernel.points:
            rate = kernel.bits_per_weight / 8 / point.seconds_per_weight
            yield (
                f"{kernel.form} {kernel.bits_per_weight:.2f} bits, {point.rows} row{'s' * (point.rows != 1)}",
                f"{rate / 1e9:.1f} GB/s",
                f"{2 * point.rows / point.seconds_per_weight / 1e9:.0f} Gop/s",
                f"{kernel.threads} threads, {kernel.isa}, set of {bytes_text(point.set_bytes)}",
            )


def _rest(target: Target) -> Iterator[Row]:
    yield "memory", bytes_text(target.ram_bytes), bytes_text(target.available_bytes), "usable, free when measured"
    for gpu in target.gpu:
        yield "GPU", gpu.name, bytes_text(gpu.memory_bytes), f"capability {gpu.capability}"


def memory_table(prediction: Prediction) -> list[tuple[str, str, str]]:
    """(owner, bytes, share) of the predicted memory, largest first, the sum last."""
    total = sum(prediction.memory.values())
    rows = sorted(prediction.memory.items(), key=lambda item: -item[1])
    shares = [(owner, bytes_text(held), f"{held / total:.0%}" if total else "") for owner, held in rows]
    return [*shares, ("sum", bytes_text(total), "")]


def bytes_text(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    step = 0
    while count >= 1024 and step < len(units) - 1:
        count /= 1024
        step += 1
    return f"{count:.0f} {units[step]}" if count >= 100 or count == int(count) else f"{count:.1f} {units[step]}"


def seconds_text(seconds: float) -> str:
    """`1.5e-6` -> `1.5 us`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.2g} {unit}" if seconds < 100 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-9:.2g} ns" if seconds < 100e-9 else f"{seconds / 1e-9:.0f} ns"
