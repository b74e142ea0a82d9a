"""Calibration: run a weight form's own kernel on synthetic matrices and keep its speed as a `KernelRate`.

    shapes   the (out, in) that matter to the caller, usually those of the model at hand
    warm     the set of matrices is walked again and again; it is larger than the cores' L2 together
    cold     before each walk every core reads more memory than the last cache holds, so the walk comes from DRAM

Every call is timed on its own and the lower quartile taken per shape: a call lasts 5 us to some ms, so enough of them
are undisturbed on a busy machine too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headway.core.progress import Progress
from headway.core.target import KernelPoint, KernelRate, Target
from headway.core.weight import F32, Weight
from headway.hardware.bench import Clears, native_instruments, quiet
from headway.hardware.machine import read_machine
from headway.hardware.rates import same_bits

Shape = tuple[int, int]
Make = Callable[[int, int, int], Weight]
"""(out_features, in_features, seed) -> a weight. Its values do not matter, its layout does."""

SETTLE_CALLS = 3
"""Calls after the caches were cleared that are not timed: the thread pool went to sleep meanwhile."""


@dataclass(frozen=True)
class Effort:
    """How long one form may take."""

    build_s: float = 0.4
    """Stop making matrices after this; one of each shape is always made."""
    point_s: float = 0.05
    """Timed calls per point, in seconds of their own; walks beyond the third stop at four times that in all."""
    rows: tuple[int, ...] = (1, 8, 128)
    cold_rows: tuple[int, ...] = (1, 8)
    """Rows measured from DRAM too; with many rows arithmetic hides the reading."""


def warm_bytes(target: Target) -> int:
    """Size of the warm set: twice all private caches, and at most half of the last level."""
    caches = target.memory[:-1]
    private = sum(level.size_bytes for level in caches if level.shared_by == 1) * target.cores
    last = caches[-1].holds_bytes if caches else 8 << 20
    return max(1 << 20, min(2 * private, last // 2) if private else last // 2)


def cold_bytes(target: Target) -> int:
    """Bytes to read so that the last cache keeps nothing of before; also what a cold point counts as its set."""
    return 2 * max(
        (level.size_bytes * _instances(level.shared_by, target) for level in target.memory[:-1]), default=32 << 20
    )


def _instances(shared_by: int, target: Target) -> int:
    return -(-target.cores // shared_by)


def sweeper(target: Target) -> Clears:
    """Clears this machine's caches, every usable core reading its part."""
    machine = read_machine()
    cpus = list(machine.cpus[: machine.cores])
    return native_instruments().Sweeper(cold_bytes(target) // len(cpus), cpus)


def measure_form(
    make: Make,
    shapes: Sequence[Shape],
    target: Target,
    *,
    threads: int,
    isa: str,
    effort: Effort | None = None,
    clears: Clears | None = None,
) -> KernelRate:
    """Measure the form that `make` gives. `threads` and `isa` are what the kernels run with now: noted, not set."""
    effort = effort or Effort()
    clears = clears or sweeper(target)
    weights = _build(make, list(dict.fromkeys(shapes)), warm_bytes(target), effort.build_s)
    sizes = sum(weight.shape[0] * weight.shape[1] for weight in weights)
    set_bytes = sum(weight.nbytes for weight in weights)
    rng = np.random.default_rng(0)
    per_call: dict[tuple[int, bool], dict[Shape, float]] = {}
    for rows in effort.rows:
        inputs = {
            inside: rng.standard_normal((rows, inside), dtype=np.float32)
            for inside in {weight.shape[1] for weight in weights}
        }
        per_call[rows, False] = _time(weights, inputs, effort.point_s, None)
        if rows in effort.cold_rows:
            per_call[rows, True] = _time(weights, inputs, effort.point_s, clears)
    call_s = fixed_cost(per_call[effort.rows[0], False])
    points = []
    for (rows, cold), seconds in per_call.items():
        total = sum(seconds[weight.shape] for weight in weights)
        points.append(
            KernelPoint(
                rows=rows,
                set_bytes=max(cold_bytes(target), set_bytes) if cold else set_bytes,
                seconds_per_weight=max(total - call_s * len(weights), 0.1 * total) / sizes,
            )
        )
    return KernelRate(
        form=weights[0].form,
        bits_per_weight=8.0 * set_bytes / sizes,
        isa=isa,
        threads=threads,
        call_s=call_s,
        points=tuple(points),
    )


def _build(make: Make, shapes: Sequence[Shape], set_bytes: int, build_s: float) -> list[Weight]:
    """Matrices of every shape in turn until the set is large enough or the time is up."""
    weights: list[Weight] = []
    begin = time.perf_counter()
    held = 0
    while len(weights) < len(shapes) or (held < set_bytes and time.perf_counter() - begin < build_s):
        weight = make(*shapes[len(weights) % len(shapes)], len(weights))
        weight.native()
        held += weight.nbytes
        weights.append(weight)
    return weights


def _time(
    weights: Sequence[Weight], inputs: Mapping[int, F32], point_s: float, clears: Clears | None
) -> dict[Shape, float]:
    """Quiet seconds of one product, per shape; the whole set is walked at least three times."""
    samples: dict[Shape, list[float]] = {weight.shape: [] for weight in weights}
    settle = weights[-1]
    spent, walks = 0.0, 0
    start = time.perf_counter()
    while walks < 3 or (spent < point_s and time.perf_counter() - start < 4 * point_s):
        if clears is not None:
            clears.sweep()
            for _ in range(SETTLE_CALLS):
                settle.matmul(inputs[settle.shape[1]])
        last = len(weights) - 1
        for index, weight in enumerate(weights):
            x = inputs[weight.shape[1]]
            begin = time.perf_counter()
            weight.matmul(x)
            took = time.perf_counter() - begin
            spent += took
            if walks and (clears is None or index != last or last == 0):  # the first walk warms up
                samples[weight.shape].append(took)
        walks += 1
    return {shape: quiet(times or [spent / walks / len(weights)]) for shape, times in samples.items()}


def fixed_cost(seconds: Mapping[Shape, float]) -> float:
    """The c >= 0 of `seconds = c + k * weights`, least relative squares over shapes; 0 for a single shape.

    At most nine tenths of the quickest call: even the smallest matrix takes some time of its own.
    """
    if len({out * inside for out, inside in seconds}) < 2:
        return 0.0
    sizes = np.array([out * inside for out, inside in seconds], np.float64)
    times = np.array(list(seconds.values()), np.float64)
    design = np.stack([1.0 / times, sizes / times], axis=1)
    (constant, _), *_ = np.linalg.lstsq(design, np.ones(len(times)), rcond=None)
    return float(min(max(constant, 0.0), 0.9 * times.min()))


def calibrate(
    target: Target,
    makers: Sequence[Make],
    shapes: Sequence[Shape],
    *,
    threads: int,
    isa: str,
    effort: Effort | None = None,
    progress: Progress | None = None,
    clears: Clears | None = None,
    again: bool = False,
) -> Target:
    """The target with the rate of every form in `makers`, about a second each.

    A form that the target has a rate for, at those bits, threads and instruction set, is left unless `again`.
    """
    for make in (progress or Progress()).track(makers, "calibrating kernels"):
        if not again and _known(target, make(*shapes[0], 0), threads, isa):
            continue
        clears = clears or sweeper(target)
        rate = measure_form(make, shapes, target, threads=threads, isa=isa, effort=effort, clears=clears)
        target = target.with_kernels([rate])
    return target


def _known(target: Target, weight: Weight, threads: int, isa: str) -> bool:
    bits = 8.0 * weight.nbytes / (weight.shape[0] * weight.shape[1])
    return any(
        (rate.form, rate.threads, rate.isa) == (weight.form, threads, isa) and same_bits(rate.bits_per_weight, bits)
        for rate in target.kernels
    )
