"""The cheapest mix of machines for a load by bucket: Mélange's integer program (arXiv 2404.14527, section 5.4).

Slices of one bucket are all alike, so that whole numbers n[b, g] of slices replace the paper's binaries: the same
optimum with as many times fewer variables as there are slices, and no symmetry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.planning.milp import F64, minimise

FULL = 1e-6
"""Share of an instance by which the solver's own tolerance may fill it beyond 1."""


@dataclass(frozen=True)
class Allocation:
    """How many instances of each type, and which share of each bucket each type takes."""

    counts: npt.NDArray[np.int64]
    """(types,)"""
    shares: F64
    """(buckets, types); rows of buckets with a load sum to 1, others are 0."""
    loads: F64
    """(types,): instances' worth of work."""
    cost: float
    """USD per hour."""
    bound: float
    """No allocation in these slices costs less."""
    optimal: bool


def allocate(
    rates: F64,
    seconds: F64,
    prices: Sequence[float],
    caps: Sequence[int | None],
    slice_factor: int = 8,
    *,
    gap: float = 0.0,
    time_limit_s: float = 10.0,
) -> Allocation | None:
    """The cheapest allocation; None: there is none within the caps.

    rates: requests per second by bucket. seconds: (types, buckets) share of an instance that one request per second
    takes (1 / throughput); infinite: that type cannot serve the bucket. prices: USD per hour of an instance.
    slice_factor: pieces that a bucket is cut in, each served by one type; 0: any share (a lower bound).
    """
    used = np.flatnonzero(rates > 0)
    types = len(prices)
    if not len(used):
        nothing = np.zeros(types)
        return Allocation(nothing.astype(np.int64), np.zeros((len(rates), types)), nothing, 0.0, 0.0, True)
    slices = slice_factor or 1
    work = (seconds[:, used] * rates[used]).T  # (buckets, types): instances for the whole bucket
    possible = np.isfinite(work)
    if not possible.any(axis=1).all():
        return None
    cost, matrix, low, high = _program(np.where(possible, work, 0.0), prices, slices)
    most = np.concatenate([np.where(possible, float(slices), 0.0).ravel(), _most(work, possible, caps)])
    integer = np.ones(len(cost), bool)
    integer[: work.size] = slice_factor > 0
    single = _single_type(work, possible, prices, caps, slices)
    found = minimise(cost, matrix, low, high, most, integer, time_limit_s=time_limit_s, gap=gap, fallback=single)
    if found is None:
        return None
    taken = found.values[: work.size].reshape(work.shape) / slices
    loads = (np.where(possible, work, 0.0) * taken).sum(axis=0)
    counts = np.ceil(loads - FULL).astype(np.int64)
    shares = np.zeros((len(rates), types))
    shares[used] = taken
    total = float(np.dot(prices, counts))
    return Allocation(counts, shares, loads, total, total if found.optimal else found.bound, found.optimal)


def _program(work: F64, prices: Sequence[float], slices: int) -> tuple[F64, object, F64, F64]:
    """(cost, matrix, low, high) over n[b, g] in the order of `work`, then y[g]."""
    from scipy.sparse import csr_array, hstack, identity, kron, vstack

    buckets, types = work.shape
    whole = kron(identity(buckets), np.ones((1, types)))  # each bucket's slices go somewhere
    fits = csr_array(hstack([identity(types).multiply(row[:, None] / slices) for row in work]))
    matrix = vstack([hstack([whole, csr_array((buckets, types))]), hstack([fits, -identity(types)])]).tocsr()
    low = np.concatenate([np.full(buckets, float(slices)), np.full(types, -np.inf)])
    high = np.concatenate([np.full(buckets, float(slices)), np.zeros(types)])
    return np.concatenate([np.zeros(work.size), np.asarray(prices, float)]), matrix, low, high


def _most(work: F64, possible: npt.NDArray[np.bool_], caps: Sequence[int | None]) -> F64:
    needed = np.ceil(np.where(possible, work, 0.0).sum(axis=0))
    return np.array([n if cap is None else min(n, cap) for n, cap in zip(needed, caps, strict=True)], float)


def single_type(rates: F64, seconds: F64, price: float) -> float:
    """USD per hour of a fleet of one type, caps aside; infinite where it cannot serve a bucket. seconds: (buckets,)."""
    used = rates > 0
    return float(price * np.ceil((rates[used] * seconds[used]).sum() - FULL)) if used.any() else 0.0


def _single_type(
    work: F64, possible: npt.NDArray[np.bool_], prices: Sequence[float], caps: Sequence[int | None], slices: int
) -> F64 | None:
    """The cheapest fleet of one type as the program's values, if one can do it all."""
    best: tuple[float, F64] | None = None
    for at, (price, cap) in enumerate(zip(prices, caps, strict=True)):
        if not possible[:, at].all():
            continue
        count = np.ceil(work[:, at].sum() - FULL)
        if (cap is None or count <= cap) and (best is None or price * count < best[0]):
            taken = np.zeros_like(work)
            taken[:, at] = slices
            machines = np.zeros(len(prices))
            machines[at] = count
            best = price * count, np.concatenate([taken.ravel(), machines])
    return None if best is None else best[1]


def missing(
    rates: F64, seconds: F64, prices: Sequence[float], caps: Sequence[int | None], slice_factor: int = 8
) -> tuple[npt.NDArray[np.int64], float]:
    """The cheapest instances beyond the caps that would make an allocation possible: (by type, their USD per hour).

    Every bucket must be possible for some type.
    """
    limits = [np.inf if cap is None else float(cap) for cap in caps]
    used = np.flatnonzero(rates > 0)
    work = (seconds[:, used] * rates[used]).T
    possible = np.isfinite(work)
    types, slices = len(prices), slice_factor or 1
    _, matrix, low, high = _program(np.where(possible, work, 0.0), prices, slices)
    from scipy.sparse import csr_array, hstack, vstack

    beyond = vstack([csr_array((len(used), types)), -csr_array(np.eye(types))])
    most = np.concatenate(
        [np.where(possible, float(slices), 0.0).ravel(), limits, np.ceil(np.where(possible, work, 0.0).sum(axis=0))]
    )
    price = np.asarray(prices, float)
    # What is within the caps costs next to nothing, so that what is beyond them is made as cheap as it can be.
    cost = np.concatenate([np.zeros(work.size), 1e-4 * price, np.where(price > 0, price, 1e-6)])
    integer = np.ones(len(cost), bool)
    integer[: work.size] = slice_factor > 0
    found = minimise(cost, hstack([matrix, beyond]).tocsr(), low, high, most, integer, gap=1e-4)
    assert found is not None
    more = found.values[-types:].astype(np.int64)
    return more, float(price @ more)
