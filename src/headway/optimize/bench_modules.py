"""`bench` of a module: latency, throughput, bytes and quality of engines on the same inputs, interleaved in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headway.core.errors import BadInput, HeadwayError
from headway.core.evidence import Evidence
from headway.core.measure import compare
from headway.core.module_model import ModuleModel
from headway.core.module_workload import Inputs, ModuleWorkload, closeness
from headway.core.progress import Progress
from headway.core.statistics import bootstrap
from headway.core.target import Target
from headway.core.units import show
from headway.optimize.bench import ROUNDS, SETTLE_S, WINDOWS, BenchResult
from headway.optimize.engines import check, peers
from headway.optimize.engines.base import ModuleEngine
from headway.optimize.engines.native_module import HeadwayModule

SAME = 1e-3
"""Relative difference of outputs within which an engine of float32 computes the module."""


def bench_module(
    model: ModuleModel,
    target: Target,
    *,
    against: Sequence[str] = (),
    original: ModuleModel | None = None,
    batches: Sequence[int] = (1,),
    tokens: int = 128,
    pieces: int = WINDOWS,
    threads: int = 1,
    seed: int = 0,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> BenchResult:
    """Time engines arm against arm: Headway twice (the noise floor), with a recipe also without, and every peer.

    original: the unmodified model, which peers run and quality is relative to (default: `model`). tokens: of each
    sequence, for models of token ids. pieces: held-out inputs on which quality is taken; 0 = none.
    Raises `BadInput` for an unknown peer; `HeadwayError` when an engine of float32 does not compute the module.
    """
    check(against, model.task)
    original, progress = original or model, progress or Progress()
    engines: list[ModuleEngine] = [HeadwayModule(model)]
    if original is not model:
        engines.append(HeadwayModule(original, "headway:unmodified"))
    engines += peers(against, original, threads)
    evidence = Evidence.begin("bench", model.name, target, seed, threads).about(model)
    workload = original.workload() if original.workload_of is not None else None
    qualities: Mapping[str, Mapping[str, float]] = {}
    if workload is not None and pieces:
        with progress.task("quality of each engine"):
            qualities = _qualities(engines, original, workload, pieces)
    rows = []
    for batch in batches:
        inputs = inputs_of(original, workload, batch, tokens)
        _check_outputs(engines[1:] if original is not model else engines, original, inputs)
        with progress.task(f"timing batch {batch}", rounds) as task:
            timing = compare(
                {engine.name: engine.repeat(inputs) for engine in engines},
                rounds=rounds,
                seed=seed,
                settle_s=SETTLE_S,
                progress=lambda *_, task=task: task.advance(),
            )
        evidence.add_timing(f"latency, batch {batch}", timing)
        shapes = [list(value.shape) for value in inputs if isinstance(value, Tensor)]
        rows += [
            {
                "engine": engine.name,
                "version": engine.version,
                "bits": engine.bits,
                "size_bytes": engine.size_bytes,
                "threads": threads,
                "batch": batch,
                "inputs": shapes,
                "latency_s": timing.median_s(engine.name),
                "throughput_per_s": batch / timing.median_s(engine.name),
                "samples": timing.samples[engine.name],
                **qualities.get(engine.name, {}),
            }
            for engine in engines
        ]
    evidence.result = {"engines": rows}
    return BenchResult(rows, evidence, target, module_table)


def module_table(rows: Sequence[Mapping[str, Any]]) -> str:
    wide = max(len(row["engine"]) for row in rows)
    lines = [f"{'engine':<{wide}}  batch     latency  throughput/s   bits     size  quality"]
    for row in rows:
        quality = f"{row['quality']:.5f}" if "quality" in row else ""
        lines.append(
            f"{row['engine']:<{wide}} {row['batch']:>6} {1e3 * row['latency_s']:>8.2f} ms "
            f"{row['throughput_per_s']:>13.1f} {row['bits']:>6.2f} {show(row['size_bytes'], 'B'):>8}  {quality}"
        )
    return "\n".join(lines)


def inputs_of(model: ModuleModel, workload: ModuleWorkload | None, batch: int, tokens: int) -> Inputs:
    """`batch` items to time: the workload's own, or the sample's, repeated along the first axis of every tensor."""
    if workload is not None and workload.batch is not None:
        return workload.batch(batch, tokens)
    counts = {len(value) for value in model.sample if isinstance(value, Tensor) and value.dim()}
    if len(counts) != 1:
        raise BadInput(f"{model.name}: its sample has no one batch axis", "give a sample whose tensors agree on it")
    rows = torch.arange(batch) % counts.pop()
    return tuple(value[rows] if isinstance(value, Tensor) and value.dim() else value for value in model.sample)


def _check_outputs(engines: Sequence[ModuleEngine], model: ModuleModel, inputs: Inputs) -> None:
    with torch.no_grad():
        exact = model.module()(*inputs)
    for engine in engines:
        if engine.bits < 32:
            continue
        least = float(np.min(closeness(exact, engine.run(inputs))))
        if least < 1 - SAME:
            raise HeadwayError(
                f"{engine.name} does not compute {model.name}: its output is off by {1 - least:.2g}",
                "leave it out, and report this",
            )


def _qualities(
    engines: Sequence[ModuleEngine], original: ModuleModel, workload: ModuleWorkload, pieces: int
) -> Mapping[str, Mapping[str, float]]:
    """Engine -> agreement with the exact module on held-out inputs, with its interval."""
    module = original.module()
    found: dict[str, dict[str, float]] = {}
    asked = workload.heldout[:pieces]
    with torch.no_grad():
        exact = [module(*inputs) for inputs in asked]
    for engine in engines:
        judged = [
            workload.scores("heldout", piece, exact[piece], engine.run(inputs)) for piece, inputs in enumerate(asked)
        ]
        scores = np.concatenate([np.atleast_1d(np.asarray(part, np.float64)) for part in judged])
        interval = bootstrap(scores, lambda values: values.mean(axis=-1))
        found[engine.name] = {
            "quality": float(scores.mean()),
            "quality_low": interval.low,
            "quality_high": interval.high,
        }
    return found
