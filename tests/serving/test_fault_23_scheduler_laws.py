"""Laws of every scheduler, in the simulator: tokens and pages are conserved, nobody waits for ever, runs repeat.

The replay of traces on the real engine beside the simulator is part of `headway prove sarathi-serve`: it takes time.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from serving_traces import COST, SCHEDULERS, SETTINGS, run, scheduler, traces

from headway.hardware.iteration_time import Load
from headway.serving.schedulers.base import MAIN, Plan, Scheduler, View
from headway.serving.schedulers.sarathi_serve import Sarathi, SarathiSettings
from headway.serving.simulator import Setting
from headway.serving.trace import Trace

TRACES, NIGHTLY_TRACES = 60, 10_000
BUDGET = 6
"""Fewer than the requests that may run."""


def check(slug: str, trace: Trace, setting: Setting) -> None:
    """Pages are counted by `run` after every event."""
    events: list[Any] = []
    outcome = run(trace, scheduler(slug), setting, events)
    assert outcome.unfinished == 0 and outcome.rejected == 0
    assert (outcome.generated == trace.output).all()
    assert (outcome.ttft > 0).all() and (outcome.finish >= outcome.ttft).all()
    # Every token but a request's first (of each stay) closes a gap, and no computed row is counted twice.
    values, counts = outcome.gaps
    assert counts.sum() == (trace.output - 1).sum()
    assert (values > 0).all()
    cached = setting.prefix and trace.keys is not None
    rows = trace.prompt.sum() + (trace.output - 1).sum()
    assert outcome.tokens == rows if not cached and not outcome.preemptions.sum() else outcome.tokens > 0
    # Nobody waits longer than it takes to serve everything one after the other, again after every preemption.
    lengths = zip(trace.prompt.tolist(), trace.output.tolist(), outcome.preemptions.tolist(), strict=True)
    serial = sum(
        (1 + again) * (COST(Load(a, a * a / 2, 0, 0, 1, 1)) + b * COST(Load(1, 0.0, 1, a + b, 1, 1)))
        for a, b, again in lengths
    )
    assert outcome.finish.max() <= 2 * serial
    again: list[Any] = []
    run(trace, scheduler(slug), setting, again)
    assert events == again


class Watched(Scheduler):
    """Sarathi, with the tokens of each of its iterations."""

    def __init__(self) -> None:
        self.made, self.seen = Sarathi(SarathiSettings(token_budget=BUDGET)), [0]

    def decide(self, view: View) -> Plan:
        plan = self.made.decide(view)
        batch = plan.lanes.get(MAIN)
        if batch is not None:
            assert batch.decode == "all" or not view.decoding.count  # decodes are never left out
            self.seen.append(sum(chunk.tokens for chunk in batch.chunks) + view.decoding.count)
        return plan


def check_budget(trace: Trace, setting: Setting) -> None:
    watched = Watched()
    run(trace, watched, setting)
    assert max(watched.seen) <= BUDGET
    assert sum(watched.seen) >= (trace.output - 1).sum()


@pytest.mark.parametrize("slug", SCHEDULERS)
@given(trace=traces(), setting=SETTINGS)
@settings(max_examples=TRACES)
def test_sixty_traces_keep_every_law(slug: str, trace: Trace, setting: Setting) -> None:
    check(slug, trace, setting)


@given(trace=traces(), setting=SETTINGS)
@settings(max_examples=TRACES)
def test_sarathi_never_exceeds_its_budget(trace: Trace, setting: Setting) -> None:
    check_budget(trace, setting)


@pytest.mark.nightly
@pytest.mark.parametrize("slug", SCHEDULERS)
@given(trace=traces(), setting=SETTINGS)
@settings(max_examples=NIGHTLY_TRACES)
def test_ten_thousand_traces_keep_every_law(slug: str, trace: Trace, setting: Setting) -> None:
    check(slug, trace, setting)


@pytest.mark.nightly
@given(trace=traces(), setting=SETTINGS)
@settings(max_examples=NIGHTLY_TRACES)
def test_sarathi_never_exceeds_its_budget_in_ten_thousand(trace: Trace, setting: Setting) -> None:
    check_budget(trace, setting)
