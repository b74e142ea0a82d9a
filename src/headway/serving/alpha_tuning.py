"""Tuning of `hexgen-text2sql`'s alpha: the last window of queries, replayed in the simulator under each candidate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from headway.core.errors import BadInput
from headway.serving.dispatch.base import Dispatcher
from headway.serving.dispatch.deadlines import StageDeadlines
from headway.serving.dispatch.hexgen_text2sql import Hexgen, HexgenSettings, Urgency
from headway.serving.dispatch.stage_times import StageTimes
from headway.serving.fleet import Machine, simulate_fleet
from headway.serving.outcome import Totals
from headway.serving.workflow import Query, Running, Workflows, quantile

FEWEST = 5
"""Queries that a window must have before it says anything."""
LOOKS = 10
"""How often, within a window, the rate of queries is looked at."""


@dataclass(frozen=True)
class WorkflowFleet:
    """Machines that a trace of queries is simulated on, and what their dispatcher and queues believe."""

    machines: tuple[Machine, ...]
    times: StageTimes
    deadlines: StageDeadlines
    late_last: bool = False
    prefix_weight: float = 0.0

    def run(
        self, queries: Sequence[Query], dispatcher: Dispatcher, by_urgency: bool = True
    ) -> tuple[list[Running], Totals]:
        """Every query of a trace to its end. by_urgency: queues by slack; else as calls came."""
        machines = [
            replace(m, setting=replace(m.setting, order=Urgency(self.times, m.kind, self.late_last)))
            if by_urgency
            else m
            for m in self.machines
        ]
        work, totals = Workflows.of(queries, self.deadlines, self.machines[0].setting.page_tokens), Totals()
        simulate_fleet(machines, work, dispatcher, totals)
        return work.runs, totals

    def p95(self, queries: Sequence[Query], alpha: float) -> float:
        """Seconds within which 95 % of the queries are done."""
        runs, _ = self.run(queries, Hexgen(self.times, alpha, self.prefix_weight))
        return quantile(runs, 0.95)


def tune(
    queries: Sequence[Query], grid: Sequence[float], p95: Callable[[Sequence[Query], float], float]
) -> tuple[float, dict[float, float]]:
    """The alpha with the lowest P95 (of equal ones the smallest), and the P95 of each.

    Raises `BadInput` for an empty window.
    """
    if not queries:
        raise BadInput("a window without a query", "give the queries of some minutes")
    found = {alpha: p95(queries, alpha) for alpha in sorted(set(grid))}
    return min(found, key=lambda alpha: (found[alpha], alpha)), found


class AlphaTuner:
    """alpha at each moment, from the queries that ended in the last window: never from those it will be used for."""

    def __init__(self, settings: HexgenSettings, p95: Callable[[Sequence[Query], float], float]) -> None:
        self.settings, self._p95 = settings, p95
        grid = sorted(settings.alpha_grid)
        self.alpha = grid[len(grid) // 2]
        self.tuned: list[tuple[float, float]] = []
        """(seconds, alpha) of each tuning."""
        self._ended: deque[tuple[float, Query]] = deque()
        self._last = self._looked = 0.0
        self._rate = 0.0

    def finished(self, run: Running, now: float) -> None:
        """A query is over (`Workflows.finished`)."""
        if not run.failed:
            self._ended.append((now, run.record()))

    def __call__(self, now: float) -> float:
        """alpha now (`Hexgen.alpha`); tunes when a window is over, or the rate of finished queries has fallen."""
        s = self.settings
        if now - self._looked < s.window_s / LOOKS:
            return self.alpha
        self._looked = now
        while self._ended and self._ended[0][0] < now - s.window_s:
            self._ended.popleft()
        rate = len(self._ended) / s.window_s
        whole = now - self._last >= s.window_s
        fell = self.tuned and rate < (1.0 - s.retune_drop) * self._rate
        if (whole or fell) and len(self._ended) >= FEWEST:
            queries = sorted((query for _, query in self._ended), key=lambda query: query.t)
            first = queries[0].t
            self.alpha, _ = tune([replace(q, t=q.t - first) for q in queries], s.alpha_grid, self._p95)
            self.tuned.append((now, self.alpha))
            self._last, self._rate = now, rate
        return self.alpha
