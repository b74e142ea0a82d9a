"""Mixed-integer linear programs over HiGHS (through scipy), with a gap, a time limit and a fallback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import Lacking

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """`cost` is that of `values`; no solution costs less than `bound`."""

    values: F64
    cost: float
    bound: float
    optimal: bool

    @property
    def gap(self) -> float:
        """How much cheaper a solution could still be, as a share of the cost."""
        return 0.0 if self.optimal else (self.cost - self.bound) / max(abs(self.cost), 1e-12)


def minimise(
    cost: F64,
    matrix: Any,
    low: F64,
    high: F64,
    most: F64,
    integer: npt.NDArray[np.bool_],
    *,
    time_limit_s: float = 10.0,
    gap: float = 0.0,
    fallback: F64 | None = None,
) -> Solution | None:
    """min cost x with low <= matrix x <= high, 0 <= x <= most, x whole where `integer`; None: there is no such x.

    matrix: sparse or dense (rows, variables). gap: stop when the cost is proven to be within this share of the least.
    fallback: values known to be possible, taken when the time ends before anything better is found. Raises `Lacking`
    when the time ends with nothing in hand, `ValueError` for costs that fall without end.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    found = milp(
        cost,
        constraints=LinearConstraint(matrix, low, high),
        integrality=integer.astype(int),
        bounds=Bounds(np.zeros(len(cost)), most),
        options={"time_limit": time_limit_s, "mip_rel_gap": gap},
    )
    if found.status == 2:
        return None
    if found.status == 0:
        return Solution(_whole(found.x, integer), float(found.fun), float(found.fun), True)
    if found.status != 1:
        raise ValueError(f"the solver says: {found.message}")
    bound = getattr(found, "mip_dual_bound", None)
    known = [values for values in (found.x, fallback) if values is not None]
    if not known:
        raise Lacking(f"no solution within {time_limit_s:g} s", "give more time_limit_s")
    best = _whole(min(known, key=lambda values: float(cost @ values)), integer)
    return Solution(best, float(cost @ best), -np.inf if bound is None else float(bound), False)


def _whole(values: F64, integer: npt.NDArray[np.bool_]) -> F64:
    return np.where(integer, np.rint(values), values)
