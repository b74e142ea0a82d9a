"""A home that knows this machine already, so that no test but the probe's own spends its time probing it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from headway.core.target import ComputeRate, MemoryLevel, Target
from headway.hardware.machine import read_machine
from headway.hardware.probe import remember, versions

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0" / "target.json"
UNMEASURED = Target(
    name="test",
    fingerprint="0" * 16,
    memory=(MemoryLevel("L2", 1 << 20, 1e11, 5e10, 1e-8), MemoryLevel("DRAM", 1 << 34, 3e10, 2e10, 1e-7)),
    compute=(ComputeRate("f32", "fma", 1e11, 1e11),),
    dispatch_s=1e-6,
    crossing_s=1e-7,
    ram_bytes=1 << 34,
    available_bytes=1 << 33,
    cores=1,
    isa=("avx2",),
)
"""A machine that was never measured."""


def use_home(home: Path) -> Target:
    """Make `home` the home of this process and its children, and know this machine there."""
    os.environ["HEADWAY_HOME"] = str(home)
    return know()


def know() -> Target:
    """The shelf's target stands for this machine's in the home that is set."""
    machine = read_machine()
    target = replace(Target.load(GOLDEN), fingerprint=machine.fingerprint, versions=versions(machine))
    remember(target)
    return target
