"""`probe`: measure this machine into a `Target`, and keep it for the next run.

| level   | takes   | for                                                              |
| ------- | ------- | ---------------------------------------------------------------- |
| quick   | < 5 s   | the first `optimize` on a machine                                |
| default | < 30 s  | `headway probe`: longer medians, where each cache level ends     |
| deep    | minutes | plans that leave the machine: finer ends, medians over a second  |
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from headway.core.errors import BadInput
from headway.core.files import atomic_write_text, state_folder
from headway.core.progress import Progress
from headway.core.target import ComputeRate, Gpu, Target
from headway.hardware.bench import Bench, Instruments, native_instruments
from headway.hardware.levels import measure_levels
from headway.hardware.machine import Machine, read_machine

Level = Literal["quick", "default", "deep"]


@dataclass(frozen=True)
class Effort:
    """Seconds per measurement and sizes tried for each cache level's end."""

    time_s: float
    points: int


EFFORTS: dict[str, Effort] = {
    "quick": Effort(0.025, 4),
    "default": Effort(0.25, 8),
    "deep": Effort(1.0, 16),
}


def probe(
    level: Level = "quick",
    progress: Progress | None = None,
    *,
    machine: Machine | None = None,
    instruments: Instruments | None = None,
) -> Target:
    """Measure this machine. Raises `Lacking` when the native extension is missing, `BadInput` for another level.

    The measured rates are medians over bursts of 0.1 ms on pinned threads, so that a busy machine costs accuracy
    only where the others' use of the memory bus is real.
    """
    if level not in EFFORTS:
        raise BadInput(f"no probe level {level!r}", f"levels are: {', '.join(EFFORTS)}")
    effort = EFFORTS[level]
    machine = machine or read_machine()
    instruments = instruments or native_instruments()
    bench = Bench(instruments, machine.cpus[: machine.cores], effort.time_s)
    units = instruments.units()
    with (progress or Progress()).task("measuring this machine", 3 + len(units)) as task:
        task.say("memory levels")
        memory = measure_levels(machine, bench, effort.points)
        task.advance()
        compute = []
        for unit, dtype, _ in units:
            task.say(f"{dtype} arithmetic: {unit}")
            compute.append(ComputeRate(dtype, unit, *_rates(bench, unit)))
            task.advance()
        task.say("dispatch")
        crossing = bench.crossing()
        dispatch = bench.torch_dispatch()
        barrier = bench.barrier()
        task.advance()
        task.say("GPUs and versions")
        target = Target(
            name=machine.name,
            fingerprint=machine.fingerprint,
            memory=memory,
            compute=tuple(compute),
            dispatch_s=dispatch if dispatch is not None else crossing,
            crossing_s=crossing,
            ram_bytes=machine.ram_bytes,
            available_bytes=machine.available_bytes,
            cores=machine.cores,
            isa=machine.isa,
            barrier_s=barrier,
            gpu=tuple(find_gpus()),
            versions=versions(machine),
            level=level,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        task.advance()
    return target


def _rates(bench: Bench, unit: str) -> tuple[float, float]:
    """(all cores, one core)."""
    one = bench.compute(unit, every=False)
    return (bench.compute(unit, every=True) if len(bench.cpus) > 1 else one), one


def versions(machine: Machine) -> dict[str, str]:
    """What the figures may depend on besides the machine."""
    found = {"python": platform.python_version(), "kernel": machine.kernel}
    for package in ("headway", "torch", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def find_gpus() -> Iterator[Gpu]:
    """NVIDIA GPUs through torch; none where torch or a driver is missing."""
    try:
        import torch
    except ImportError:
        return
    if not torch.cuda.is_available():
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield Gpu(
            name=found.name,
            memory_bytes=int(found.total_memory),
            capability=f"{found.major}.{found.minor}",
            multiprocessors=int(found.multi_processor_count),
        )


# The target kept from run to run

BUSY = 2.0
"""Load per core beyond which what is measured is not this machine."""


def target_file(machine: Machine) -> Path:
    """Where this machine's target is kept in the user's state folder."""
    return state_folder("targets") / f"{machine.fingerprint}.json"


def remember(target: Target) -> None:
    """Keep `target` for `current_target`; replaces what was kept for the same machine."""
    atomic_write_text(state_folder("targets") / f"{target.fingerprint}.json", target.dumps() + "\n")


def kept_target(machine: Machine) -> Target | None:
    """What was kept for this machine; None when nothing was, or when it can no longer be read."""
    path = target_file(machine)
    if not path.exists():
        return None
    try:
        found = Target.load(path)
    except BadInput:
        return None  # damaged, or another version's: measured again and replaced
    if found.fingerprint != machine.fingerprint:
        return None
    if found.versions.get("headway") != versions(machine).get("headway"):
        return replace(found, kernels=())  # calibrated with other kernels
    return found


def current_target(progress: Progress | None = None) -> Target:
    """This machine's kept target, else a quick probe; kept from now on, unless the machine was busy with other work."""
    machine = read_machine()
    kept = kept_target(machine)
    if kept is not None:
        return kept
    quiet = is_quiet(machine)
    target = probe("quick", progress, machine=machine)
    if quiet:
        remember(target)
    elif progress is not None:
        progress.note(f"this machine is busy (load {os.getloadavg()[0]:.1f}): its rates are measured low, and not kept")
    return target


def is_quiet(machine: Machine) -> bool:
    """Whether what is measured now may be kept: other work leaves the cores alone."""
    return os.getloadavg()[0] <= BUSY * machine.cores
