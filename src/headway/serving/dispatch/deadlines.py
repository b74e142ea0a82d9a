"""Deadlines of stages: each gets the share of what is left of its query's time that its expected work is of the rest.

    SLO_s = (SLO_q - elapsed) * t(s) / (t(s) + sum of t over the stages expected after s)

t: mean over the fleet of a call alone. Computed anew at each stage, so that a late query's stages are tighter.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from headway.core.errors import BadInput
from headway.serving.dispatch.stage_times import StageTimes


class StageDeadlines:
    """`template`: the stages that a query is expected to have; each query strikes them from a copy of its own."""

    def __init__(
        self, times: StageTimes, template: Sequence[str], slo_s: float | None = None, slo_scale: float = 1.0
    ) -> None:
        """slo_s: seconds of a whole query; None: what the template takes alone, times `slo_scale`."""
        self.times, self.template = times, tuple(template)
        self.slo_s = sum(times.mean(stage) for stage in self.template) * slo_scale if slo_s is None else slo_s
        if not (isfinite(self.slo_s) and self.slo_s > 0):
            raise BadInput(f"a limit of {self.slo_s} s for a query", "give seconds above 0")

    def begin(self) -> list[str]:
        """What a new query is expected to go through."""
        return list(self.template)

    def next(self, remaining: list[str], stage: str, arrival: float, now: float) -> float:
        """When the calls of a stage that is ready now should be done; what was expected up to it is struck out.

        A stage that is reached early strikes those before it (no more revisions come once the tests are reached); one
        that nobody expected strikes none. Before `now` for a query that is late already.
        """
        if stage in remaining:
            del remaining[: remaining.index(stage) + 1]
        own = self.times.mean(stage)
        total = own + sum(self.times.mean(other) for other in remaining)
        share = own / total if total > 0 else 1.0 / (1 + len(remaining))
        return now + (self.slo_s - (now - arrival)) * share
