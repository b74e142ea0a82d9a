"""Throughput by bucket: the highest rate of requests of one size that one instance serves while its SLO holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load
from headway.serving.capacity import capacity
from headway.serving.fleet import Machine
from headway.serving.outcome import Outcome
from headway.serving.schedulers.base import SLO
from headway.serving.simulator import simulate
from headway.serving.trace import Trace

REQUESTS = 200
SECONDS = 60.0
"""A load run has at least so many requests and lasts at least so long."""
MOST_REQUESTS = 4000
GROWTH = 1.5
"""How much longer the last third of a run may wait than the third before it."""


def sustained(outcome: Outcome, slo: SLO) -> bool:
    """Whether a run held its SLO once warm (after its first third), and its queue did not grow.

    A wait below the time of one token (or a tenth of the limit on the first) is no queue.
    """
    count = len(outcome.arrival)
    third = count // 3
    if outcome.rejected or outcome.unfinished:
        return False
    warm = slice(third, None)
    if slo.tpot_s is not None:
        tpot = outcome.tpot[warm]
        tpot = tpot[~np.isnan(tpot)]
        if len(tpot) and np.quantile(tpot, slo.quantile) > slo.tpot_s:
            return False
    if slo.ttft_s is not None and np.quantile(outcome.ttft[warm], slo.quantile) > slo.ttft_s:
        return False
    if slo.tbt_s is not None and outcome.gap_quantile(slo.quantile) > slo.tbt_s:
        return False
    middle, last = outcome.delay[third : 2 * third].mean(), outcome.delay[2 * third :].mean()
    return bool(last <= GROWTH * middle + shortest_wait(slo))


def shortest_wait(slo: SLO) -> float:
    """Seconds of waiting that are no queue."""
    return max(slo.tpot_s or 0.0, slo.tbt_s or 0.0, 0.1 * (slo.ttft_s or 0.0))


def steady_throughput(cost: IterationTime, tokens: int, prompt: int, output: int, slo: SLO) -> float:
    """What a steady batch would give, from the iteration time alone: where a search may begin.

    tokens: of keys and values that there is room for. 0: not even one request holds its limit.
    """
    most = min(tokens // (prompt + output), 1024)
    limit = slo.tpot_s or slo.tbt_s or float("inf")
    best = 0.0
    read = cost(Load(prompt, prompt * prompt / 2, 0, 0, 1, 1))
    for batch in range(1, most + 1):
        context = int(batch * (prompt + output / 2))
        token = cost(Load(batch, 0.0, batch, context, batch, batch)) + batch * read / output
        if token > limit:
            break
        best = max(best, batch / (output * token))
    return best


@dataclass(frozen=True)
class LoadRun:
    """Requests of one size (or of a trace's sizes), arriving at random, on one instance."""

    seed: int = 0
    requests: int = REQUESTS
    seconds: float = SECONDS

    def fixed(self, prompt: int, output: int, rate: float) -> Trace:
        """Poisson arrivals of requests of one size."""
        count = int(min(max(self.requests, rate * self.seconds), MOST_REQUESTS))
        random = np.random.default_rng(self.seed)
        arrival = np.cumsum(random.exponential(1.0 / rate, count))
        return Trace(arrival, np.full(count, prompt), np.full(count, output))


def find(
    run: Callable[[Trace], Outcome], prompt: int, output: int, slo: SLO, guess: float, load: LoadRun, tolerance: float
) -> float:
    """Requests per second of one size that `run` (an instance, real or simulated) sustains; 0: none."""
    if guess <= 0:
        return 0.0
    found = capacity(
        lambda rate: run(load.fixed(prompt, output, rate)),
        slo,
        guess,
        tolerance=tolerance,
        held=sustained,
        most_runs=14,
    )
    return found.rate if found.outcome is not None else 0.0


def simulated(machine: Machine, prompt: int, output: int, load: LoadRun, tolerance: float) -> float:
    """`find` in the simulator, from what a steady batch would give. Raises `BadInput` for a device with no one cost."""
    cost = getattr(machine.device, "cost", None)
    if cost is None:
        raise BadInput(f"{machine.kind} has no single iteration time", "give one, or throughputs by bucket")
    setting = machine.setting
    guess = steady_throughput(cost, setting.pages * setting.page_tokens, prompt, output, setting.slo)

    def run(trace: Trace) -> Outcome:
        return simulate(trace, machine.scheduler(), machine.device, setting)

    return find(run, prompt, output, setting.slo, 0.8 * guess, load, tolerance)
