"""Calibration of attention: what one more key costs, as a `KernelRate` whose matrix is the keys and values.

A step is timed at a small and at a large depth, in turns. The difference is attention alone, whatever else the step
does, so any runtime can be measured through its own steps; `native_steps` makes a one-layer model of the native
runtime with the heads at hand and nearly nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headway.core.target import KernelPoint, KernelRate, Target
from headway.hardware.bench import Clears, native_module, quiet
from headway.hardware.calibrate import cold_bytes, sweeper
from headway.kernels import cpu

Steps = Callable[[int, int], Callable[[], object]]
"""(keys, queries) -> a call that attends `queries` tokens to about `keys` keys each and leaves all as it was."""

SHALLOW, DEEP = 128, 1536
QUERIES = (1, 128)
FILL = 256
"""Tokens fed at a time while a cache is filled."""

FLOOR = 0.02
"""A difference below this share of the deep step is noise: the share itself is taken."""


@dataclass(frozen=True)
class AttentionShape:
    """What decides the cost of one layer's attention."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def elements_per_key(self) -> int:
        """K and V of all KV heads."""
        return 2 * self.kv_heads * self.head_dim


def measure_attention(
    steps: Steps,
    shape: AttentionShape,
    element_bytes: float,
    target: Target,
    *,
    form: str,
    threads: int,
    isa: str,
    clears: Clears | None = None,
    point_s: float = 0.05,
) -> KernelRate:
    """Rate of `kv:<dtype>` (give it as `form`): rows are the query heads that read one KV element.

    `elements` of the steps' caches: one layer of `shape`. With one query also from DRAM, the caches cleared before.
    """
    clears = clears or sweeper(target)
    elements = shape.elements_per_key
    points = []
    for queries in QUERIES:
        shallow, deep = steps(SHALLOW, queries), steps(DEEP, queries)
        for cold in (False, True) if queries == 1 else (False,):
            low, high = _in_turns(shallow, deep, clears if cold else None, point_s)
            per_element = max(high - low, FLOOR * high) / ((DEEP - SHALLOW) * elements)
            held = int(DEEP * elements * element_bytes)
            rows = max(1, queries * shape.heads // shape.kv_heads)
            points.append(KernelPoint(rows, max(cold_bytes(target), held) if cold else held, per_element))
    return KernelRate(form, 8.0 * element_bytes, isa, threads, 0.0, tuple(points))


def _in_turns(
    one: Callable[[], object], other: Callable[[], object], clears: Clears | None, point_s: float
) -> tuple[float, float]:
    """Quiet seconds of both calls, taken in turns."""
    samples: tuple[list[float], list[float]] = ([], [])
    for call in (one, other):
        call()
    start = time.perf_counter()
    while len(samples[0]) < 7 or time.perf_counter() - start < 2 * point_s:
        for call, times in zip((one, other), samples, strict=True):
            if clears is not None:
                clears.sweep()
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    return quiet(samples[0]), quiet(samples[1])


def native_steps(shape: AttentionShape, *, kv: str, threads: int) -> Steps:
    """Steps of a one-layer native model whose matrices are as small as its heads allow."""
    native = native_module()
    model = native.make_model(_small_model(shape, kv))
    rng = np.random.default_rng(0)

    def feed(sequence: Any, count: int) -> None:
        tokens = rng.integers(0, _VOCAB, count).astype(np.int32)
        model.step([sequence], tokens, np.array((0, count), np.int32), np.ones(1, np.uint8), threads)

    def steps(keys: int, queries: int) -> Callable[[], object]:
        sequence = model.sequence()
        before = max(0, keys - (queries + 1) // 2)  # the mean query of the step then sees `keys` keys
        for done in range(0, before, FILL):
            feed(sequence, min(FILL, before - done))

        def call() -> None:
            feed(sequence, queries)
            sequence.truncate(before)

        return call

    return steps


_VOCAB = 32
_WIDTH = 32


def _small_model(shape: AttentionShape, kv: str) -> dict[str, Any]:
    """Description of the model: `_WIDTH` wide but for its heads."""
    rng = np.random.default_rng(0)

    def matrix(out: int, inside: int) -> Any:
        return cpu.pack_dense(rng.standard_normal((out, inside), dtype=np.float32) * 0.1)

    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    ones = np.ones(_WIDTH, np.float32)
    layer = {
        "q": matrix(query, _WIDTH),
        "k": matrix(key, _WIDTH),
        "v": matrix(key, _WIDTH),
        "o": matrix(_WIDTH, query),
        "gate": matrix(_WIDTH, _WIDTH),
        "up": matrix(_WIDTH, _WIDTH),
        "down": matrix(_WIDTH, _WIDTH),
        "attention_norm": ones,
        "mlp_norm": ones,
        "window": 0,
        "frequencies": np.full(shape.head_dim // 2, 0.01, np.float32),
        "rope_factor": 1.0,
    }
    head = matrix(_VOCAB, _WIDTH)
    return {
        "vocab": _VOCAB,
        "d_model": _WIDTH,
        "ffn": _WIDTH,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "norm_eps": 1e-5,
        "query_scale": shape.head_dim**-0.5,
        "embedding_scale": 1.0,
        "attention_softcap": 0.0,
        "final_softcap": 0.0,
        "activation": 0,
        "kv": kv,
        "exact": False,
        "layers": [layer],
        "final_norm": ones,
        "embedding": head,
        "head": head,
    }
