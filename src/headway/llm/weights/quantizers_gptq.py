"""`gptq`: rounding with error feedback under H, the second moment of a layer's inputs.

Frantar et al., "GPTQ", ICLR 2023 (arXiv 2210.17323): columns are rounded one by one, and what a column loses is spread
over the columns that follow, so that (w - value) H (w - value)^T stays small. Here columns with the largest inputs go
first (act order) while groups stay those of the original order (static groups), the grid is fitted first (weighted by
the diagonal of H), and afterwards `rounds` of improvement follow, which the paper has not: all scales and minima of a
row by least squares under H, then each code in turn to the best value given all others.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.weight import F32
from headway.llm.weights.base import finite
from headway.llm.weights.quantizers import AffineCodes, Floats, Grid, GridKind, checked, fit, stored

ROUNDS = 1
"""One takes two thirds of what many give; more changed nothing that could be measured on SmolLM2 at 3 bits."""
DAMPING = 0.01


@dataclass(frozen=True)
class Feedback:
    """What a pass over the columns needs of H. Depends on H alone, so all matrices with one input share it.

    order: (in,) columns in the order of the pass. v: (in, in) unit upper triangular, H = v d v^T, in that order.
    """

    order: npt.NDArray[np.int32]
    v: F32


def gptq(
    w: F32,
    hessian: F32,
    bits: int,
    group_size: int,
    *,
    grid: GridKind = "weighted",
    act_order: bool = True,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
    floats: Floats = "f16",
    threads: int = 0,
) -> AffineCodes:
    """w: (out, in); hessian: (in, in), symmetric, at least semi-definite. `rounds` 0: GPTQ alone.

    Deterministic: the same bits for any number of threads and any instruction set.
    Raises `BadInput` for weights or an H that are not finite.
    """
    from headway.kernels.cpu import _cpu

    w = checked(w, bits, group_size)
    if hessian.shape != (w.shape[1], w.shape[1]):
        raise BadInput(
            f"H of shape {hessian.shape} does not fit {w.shape[1]} inputs", "give (in_features, in_features)"
        )
    found = fit(w, bits, group_size, grid=grid, importance=np.diagonal(hessian), floats=floats, threads=threads)
    levels = 2**bits - 1
    scale, minimum = (np.ascontiguousarray(a, np.float32) for a in (found.scale, found.minimum))
    pass_ = feedback(hessian, damping, act_order)
    codes = _cpu.quantise_sweep(w, pass_.v, pass_.order, scale, minimum, None, group_size, levels, threads)
    if not rounds:
        return AffineCodes(bits, codes, found)
    half = found.scale.dtype == np.float16
    codes, scale, minimum = _cpu.quantise_refine(
        w, codes, damped(hessian, damping), scale, minimum, group_size, levels, rounds, half, threads
    )
    refined = stored(scale, minimum, group_size, "f16") if half else Grid(scale, minimum, group_size)
    return AffineCodes(bits, codes, refined)


def damped(hessian: F32, damping: float) -> F32:
    """H with `damping` x its mean diagonal added to the diagonal, and 1 where a column never saw a signal."""
    h = np.array(hessian, np.float32, order="C")
    finite(h, "H")
    diagonal = np.diagonal(h)
    silent = diagonal <= 0
    added = np.where(silent, 1.0, 0.0) + damping * float(diagonal.mean())
    h[np.diag_indices(len(h))] += added.astype(np.float32)
    return h


_factors: dict[tuple[int, float, bool], tuple[weakref.ref[F32], Feedback]] = {}
_guard = threading.Lock()


def feedback(hessian: F32, damping: float = DAMPING, act_order: bool = True) -> Feedback:
    """The factor of an H, remembered while that array lives: siblings (q, k, v) bring the same one."""
    key = (id(hessian), damping, act_order)
    with _guard:
        known = _factors.get(key)
    if known is not None and known[0]() is hessian:
        return known[1]
    made = factor(hessian, damping, act_order)

    def forget(_: object) -> None:
        with _guard:
            _factors.pop(key, None)

    with _guard:
        _factors[key] = (weakref.ref(hessian, forget), made)
    return made


def factor(hessian: F32, damping: float, act_order: bool) -> Feedback:
    """H damped and in order of falling diagonal, as v d v^T. No pivot can be below what the damping added."""
    from headway.kernels.cpu import _cpu

    h = damped(hessian, damping)
    diagonal = np.diagonal(h)
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(h))
    least = max(0.5 * damping * float(np.diagonal(hessian).mean()), 1e-6 * float(diagonal.min()), 1e-30)
    order = order.astype(np.int32)
    return Feedback(order, _cpu.quantise_factor(h, order, least))
