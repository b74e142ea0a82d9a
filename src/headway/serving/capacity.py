"""Capacity: the highest arrival rate at which an SLO still holds, found by bisection over whole load runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headway.core.errors import BadInput
from headway.serving.outcome import Outcome
from headway.serving.schedulers.base import SLO

MOST_RUNS = 20
MEDIAN_DELAY = 2.0
"""Seconds that the median request may wait for admission (Sarathi-Serve's capacity search)."""


@dataclass(frozen=True)
class Capacity:
    """`rate` requests per second held; the next one tried, at most `tolerance` above, did not."""

    rate: float
    outcome: Outcome | None
    """Of the run at that rate; None: not even the lowest rate held."""
    runs: tuple[tuple[float, bool], ...]


def holds(outcome: Outcome, slo: SLO, median_delay: float = MEDIAN_DELAY) -> bool:
    """Whether a run met its limits: the SLO's quantile of the times, the median wait, everything served."""
    figures = outcome.summary()
    if outcome.rejected or outcome.unfinished or figures["delay_p50_s"] > median_delay:
        return False
    return limits_hold(outcome, slo)


def limits_hold(outcome: Outcome, slo: SLO) -> bool:
    """Whether the SLO's quantile of each time that it limits is within its limit."""
    if slo.tbt_s is not None and outcome.gap_quantile(slo.quantile) > slo.tbt_s:
        return False
    if slo.tpot_s is not None and outcome.tpot_quantile(slo.quantile) > slo.tpot_s:
        return False
    return slo.ttft_s is None or outcome.ttft_quantile(slo.quantile) <= slo.ttft_s


def attainment(outcome: Outcome, slo: SLO) -> float:
    """Share of all requests that met both limits: the time to the first token, and the mean time between its tokens."""
    between = (outcome.finish - outcome.ttft) / np.maximum(outcome.generated - 1, 1)
    met = ~np.isnan(outcome.finish)
    if slo.ttft_s is not None:
        met &= outcome.ttft <= slo.ttft_s
    if slo.tbt_s is not None:
        met &= between <= slo.tbt_s
    return float(met.mean())


def attained(outcome: Outcome, slo: SLO) -> bool:
    """Whether the SLO's share of the requests met both limits (goodput, as DistServe and semi-PD count it)."""
    return attainment(outcome, slo) >= slo.quantile


def capacity(
    run: Callable[[float], Outcome],
    slo: SLO,
    guess: float,
    *,
    tolerance: float = 0.025,
    most_runs: int = MOST_RUNS,
    held: Callable[[Outcome, SLO], bool] = holds,
) -> Capacity:
    """Bisection between 0 and twice the guess (doubled while that holds) until the bracket is within `tolerance`.

    run: a load run at a rate in requests per second. Raises `BadInput` for a guess that is no rate.
    """
    if not guess > 0:
        raise BadInput(f"a guess of {guess} requests per second", "give one above 0")
    runs: list[tuple[float, bool]] = []
    best: Outcome | None = None
    low, high, grow = 0.0, 2.0 * guess, True
    rate = guess
    while len(runs) < most_runs and (grow or high - low > tolerance * high):
        outcome = run(rate)
        fine = held(outcome, slo)
        runs.append((rate, fine))
        if fine:
            low, best = rate, outcome
            if grow:
                rate, high = 2.0 * rate, 4.0 * rate
                continue
        else:
            high, grow = rate, False
        rate = (low + high) / 2.0
    return Capacity(low, best, tuple(runs))
