"""From probabilities of operations to networks: the most probable one, also under a limit on its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.floating]
GRID = 2000
"""Parts into which a limit is cut; costs are rounded up to them, so that no network exceeds it."""
LADDER = 8


def argmax(probabilities: Sequence[Row]) -> list[int]:
    return [int(np.argmax(p)) for p in probabilities]


def cost(path: Sequence[int], costs: Sequence[Row], fixed: float) -> float:
    return fixed + float(sum(layer[k] for layer, k in zip(costs, path, strict=True)))


def most_probable(probabilities: Sequence[Row], costs: Sequence[Row], fixed: float, limit: float) -> list[int] | None:
    """The path of the largest probability whose cost is at most `limit` (dynamic programme over a grid of costs).

    None where the cheapest path costs more.
    """
    cheapest = [int(np.argmin(layer)) for layer in costs]
    room = limit - fixed
    if cost(cheapest, costs, fixed) > limit:
        return None
    cell = max(room, 1e-30) / GRID
    best = np.full(GRID + 1, -math.inf)
    best[0] = 0.0
    taken: list[npt.NDArray[np.intp]] = []
    for p, layer in zip(probabilities, costs, strict=True):
        after, choice = np.full(GRID + 1, -math.inf), np.zeros(GRID + 1, np.intp)
        for k in range(len(p)):
            cells = math.ceil(layer[k] / cell - 1e-9)
            if cells > GRID:
                continue
            moved = np.full(GRID + 1, -math.inf)
            moved[cells:] = best[: GRID + 1 - cells] + math.log(max(p[k], 1e-300))
            better = moved > after
            after[better], choice[better] = moved[better], k
        best = after
        taken.append(choice)
    if not np.isfinite(best).any():
        return cheapest  # it fits, but not its rounded parts
    at = int(np.argmax(best))
    path = []
    for layer, choice in zip(reversed(costs), reversed(taken), strict=True):
        k = int(choice[at])
        path.append(k)
        at -= math.ceil(layer[k] / cell - 1e-9)
    return path[::-1]


def candidates(
    probabilities: Sequence[Row], costs: Sequence[Row], fixed: float, limit: float
) -> tuple[list[list[int]], list[list[int]]]:
    """(paths to try, best first; the ladder of most probable paths from the cheapest to the dearest limit).

    Tried: the argmax where it keeps the limit, else the most probable path that does; then some that leave room, in
    case that the whole costs more than the sum of its parts.
    """
    low = cost([int(np.argmin(layer)) for layer in costs], costs, fixed)
    high = cost([int(np.argmax(layer)) for layer in costs], costs, fixed)
    found = argmax(probabilities)
    tries = [found] if cost(found, costs, fixed) <= limit * (1 + 1e-9) else []
    for share in (1.0, 0.95, 0.9, 0.8):
        path = most_probable(probabilities, costs, fixed, low + share * (limit - low))
        if path is not None and path not in tries:
            tries.append(path)
    ladder: list[list[int]] = []
    for limit_here in np.linspace(low, high, LADDER):
        path = most_probable(probabilities, costs, fixed, float(limit_here) * (1 + 1e-9))
        if path is not None and path not in ladder:
            ladder.append(path)
    return tries, ladder
