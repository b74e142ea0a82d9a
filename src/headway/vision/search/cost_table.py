"""`CostTable`: what layers cost, measured one by one, and what a network costs as their sum.

A layer that was not measured is an error that names its key, never a silent zero. The sum is checked on whole
networks: a line fitted through (sum, measured) corrects what layers cost each other, and says how well they add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from headway.core.decode import decode
from headway.core.errors import BadInput
from headway.core.files import atomic_write_json, read_json
from headway.core.measure import compare
from headway.core.progress import Progress
from headway.hardware.bench import quiet
from headway.vision.search.blocks import HeadSpec, LayerSpec, NetSpec

Layers = Sequence[tuple[LayerSpec | HeadSpec, int]]
"""Layers with the side of their input in pixels."""

ROUNDS = 50


@dataclass(frozen=True)
class CostTable:
    """`unit` per layer, by key; a network costs `scale` times the sum plus `offset`."""

    costs: Mapping[str, float]
    unit: str = "s"
    scale: float = 1.0
    offset: float = 0.0
    batch: int = 1
    r2: float | None = None
    """Of the fit on whole networks; None: not validated."""
    error: float | None = None
    """Mean relative error there."""

    def of(self, key: str) -> float:
        """What one layer adds to a network; raises `BadInput` naming a key that is missing."""
        if key not in self.costs:
            raise BadInput(f"the cost table has no entry {key!r}", "measure it, or take a table of this space")
        return self.scale * self.costs[key]

    def cost(self, keys: Iterable[str]) -> float:
        """A network's cost."""
        return self.offset + sum(self.of(key) for key in keys)

    def net(self, spec: NetSpec) -> float:
        return self.cost(spec.keys())

    def swapped(self, pairs: Mapping[str, str]) -> CostTable:
        """The same table with the costs of some keys exchanged: another machine, made up."""
        other = {**pairs, **{value: key for key, value in pairs.items()}}
        return replace(self, costs={key: self.costs[other.get(key, key)] for key in self.costs})

    def fitted(self, sums: Sequence[tuple[Sequence[str], float]]) -> CostTable:
        """Correct the sum by a line through whole networks: (keys, measured cost) each."""
        plain = replace(self, scale=1.0, offset=0.0)
        x = np.array([plain.cost(keys) for keys, _ in sums])
        y = np.array([cost for _, cost in sums])
        if len(sums) < 3 or np.ptp(x) == 0:
            raise BadInput(f"{len(sums)} networks do not tell a line", "measure at least 3 that differ")
        # both at least 0, relative errors squared: a few noisy networks make no cost negative
        (scale, offset), _ = nnls(np.stack([x, np.ones_like(x)], 1) / y[:, None], np.ones_like(y))
        return replace(self, scale=float(scale), offset=float(offset)).judged(sums)

    def judged(self, sums: Sequence[tuple[Sequence[str], float]]) -> CostTable:
        """The same table with its R2 and its mean relative error on these networks."""
        y = np.array([cost for _, cost in sums])
        said = np.array([self.cost(keys) for keys, _ in sums])
        r2 = 1 - ((y - said) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        return replace(self, r2=float(r2), error=float(np.abs(said / y - 1).mean()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any, source: str = "cost table") -> CostTable:
        """Raises `BadInput` for a document that is no table, or a cost that is not a number."""
        table = decode(cls, document, source)
        bad = [key for key, cost in table.costs.items() if not np.isfinite(cost)]
        if bad:
            raise BadInput(f"{source}: the cost of {bad[0]!r} is {table.costs[bad[0]]}", "measure it again")
        return table

    def save(self, path: str | Path) -> None:
        atomic_write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        return cls.from_json(read_json(path), str(path))


def measure_table(
    layers: Layers,
    nets: Sequence[NetSpec],
    batch: int,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> CostTable:
    """A table of this machine: every distinct layer in isolation, warm, interleaved with the others and with `nets`.

    Its line is fitted on the first half of `nets`, and judged on the other. Quiet seconds a batch.
    """
    arms = {spec.key(size): (spec.build(), (batch, spec.inside, size, size)) for spec, size in layers}
    whole = {f"net {index}": (spec.build(), spec.shape(batch)) for index, spec in enumerate(nets)}
    seconds = measure_modules({**arms, **whole}, rounds, seed, progress)
    found = [(spec.keys(), seconds[name]) for name, spec in zip(whole, nets, strict=True)]
    table = CostTable({key: seconds[key] for key in arms}, batch=batch)
    return table.fitted(found[: len(found) // 2]).judged(found[len(found) // 2 :])


def measure_nets(
    specs: Sequence[NetSpec], batch: int, rounds: int = 20, seed: int = 0, progress: Progress | None = None
) -> list[float]:
    """Time whole networks, interleaved: quiet seconds a batch."""
    arms = {f"net {index}": (spec.build(), spec.shape(batch)) for index, spec in enumerate(specs)}
    return list(measure_modules(arms, rounds, seed, progress).values())


def measure_modules(
    arms: Mapping[str, tuple[nn.Module, tuple[int, ...]]], rounds: int, seed: int, progress: Progress | None
) -> dict[str, float]:
    """Time modules on random inputs of their shapes, interleaved: quiet seconds a call, by name."""
    calls = {name: _call(module, torch.randn(shape)) for name, (module, shape) in arms.items()}
    with (progress or Progress()).task(f"timing {len(calls)} layers and networks", rounds) as task:
        timing = compare(
            calls,
            rounds=rounds,
            min_time_s=0.002,
            aa=False,
            seed=seed,
            clock=_clock(),
            progress=lambda *_: task.advance(),
        )
    return {name: quiet(values) for name, values in timing.samples.items()}


def _clock() -> Callable[[], float]:
    """On one thread its own time, which a busy machine does not lengthen; on several the wall's."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _call(module: nn.Module, inputs: Tensor) -> Callable[[], object]:
    module = module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.no_grad():
            return module(inputs)

    return call
