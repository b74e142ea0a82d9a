"""Many passes of the same decodes as one event are the same passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from serving_traces import COST, SCHEDULERS, SETTINGS, scheduler, traces

from headway.serving.schedulers.base import Plan, Scheduler, View
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import Trace


class _Asked(Scheduler):
    """Asks another scheduler at every pass."""

    def __init__(self, inner: Scheduler) -> None:
        self.inner, self.lanes = inner, inner.lanes

    def decide(self, view: View) -> Plan:
        return self.inner.decide(view)


@pytest.mark.parametrize("slug", [slug for slug in SCHEDULERS if scheduler(slug).steady])
@given(trace=traces(), setting=SETTINGS)
@settings(max_examples=60, deadline=None)
def test_many_passes_as_one_event_are_the_same_passes(slug: str, trace: Trace, setting: Setting) -> None:
    one = simulate(trace, scheduler(slug), OneLane(COST), setting)
    each = simulate(trace, _Asked(scheduler(slug)), OneLane(COST), setting)
    assert np.array_equal(one.finish, each.finish) and np.array_equal(one.ttft, each.ttft)
    assert repr(one.summary()) == repr(each.summary())
