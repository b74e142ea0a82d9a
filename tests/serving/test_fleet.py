"""A fleet of one is the simulator; calls are conserved whoever dies; routing follows its table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_traces import COST, SCHEDULERS, SETTINGS, scheduler, traces

from headway.core.errors import BadInput, Lacking
from headway.hardware.iteration_time import IterationTime
from headway.serving.dispatch.base import Call, Dispatcher, FleetView, RoundRobin
from headway.serving.dispatch.by_size import BySize, RoutingTable
from headway.serving.fleet import Machine, TraceWork, simulate_fleet
from headway.serving.outcome import Outcome
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import Trace

SLOW = IterationTime((0, 8, 64), (0.02, 0.02, 0.16), 2e-6, 2e-6, 2e-5, 2e-5)
TABLE = RoutingTable(
    (20, 80), ("fast", "slow"), np.array([[0.25, 0.75], [1.0, 0.0]]), np.array([[0.1, 0.2], [0.4, np.inf]])
)


def machine(kind: str, setting: Setting, slug: str = "sarathi-serve") -> Machine:
    return Machine(kind, lambda: scheduler(slug), OneLane(COST if kind == "fast" else SLOW), setting)


@pytest.mark.parametrize("slug", SCHEDULERS)
@given(trace=traces(), setting=SETTINGS)
@settings(max_examples=15, deadline=None)
def test_a_fleet_of_one_is_the_simulator(slug: str, trace: Trace, setting: Setting) -> None:
    alone = simulate(trace, scheduler(slug), OneLane(COST), setting)
    record = Outcome.begin(trace)
    simulate_fleet([machine("fast", setting, slug)], TraceWork(trace), RoundRobin(), record)
    assert repr(record.summary()) == repr(alone.summary())  # no gap at all is NaN
    assert np.array_equal(record.finish, alone.finish)


@given(
    trace=traces(),
    setting=SETTINGS,
    losses=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 3)), max_size=3, unique_by=lambda loss: loss[1]),
)
@settings(max_examples=60, deadline=None)
def test_every_call_is_answered_whatever_dies(trace: Trace, setting: Setting, losses: list[tuple[float, int]]) -> None:
    record = Outcome.begin(trace)
    watched = Watched(BySize(TABLE))
    machines = [machine(kind, setting) for kind in ("fast", "slow", "slow", "fast")]
    simulate_fleet(machines, TraceWork(trace), watched, record, losses=losses)
    assert record.unfinished == 0 and record.rejected == 0
    assert (record.generated == trace.output).all()
    assert not +watched.held  # what was routed has left
    assert all(abs(load) < 1e-9 for load in watched.inner._outstanding.values())


class Watched(Dispatcher):
    """Counts the calls that are on each instance."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.held: Counter[int] = Counter()

    def route(self, call: Call, fleet: FleetView) -> int:
        at: int = self.inner.route(call, fleet)
        assert fleet.instances[at].alive
        self.held[at] += 1
        return at

    def done(self, call: Call, instance: int, fleet: FleetView) -> None:
        self.held[instance] -= 1
        assert self.held[instance] >= 0
        self.inner.done(call, instance, fleet)


def test_shares_are_kept_at_every_moment_and_the_least_loaded_instance_is_taken() -> None:
    trace = Trace(np.linspace(0, 1, 200), np.full(200, 10), np.full(200, 3))
    record = Outcome.begin(trace)
    fleet = simulate_fleet(
        [machine(kind, Setting(100)) for kind in ("fast", "slow", "slow")], TraceWork(trace), BySize(TABLE), record
    )
    placed = [fleet.placed[at] for at in range(200)]
    fast = np.cumsum([at == 0 for at in placed])
    assert (np.abs(fast - 0.25 * np.arange(1, 201)) <= 1).all()
    assert abs(placed.count(1) - placed.count(2)) <= 10


def test_long_prompts_go_where_they_can_and_a_kind_that_died_leaves_its_share() -> None:
    trace = Trace(np.linspace(0, 1, 40), np.full(40, 60), np.full(40, 2))
    fleet = simulate_fleet(
        [machine("fast", Setting(100)), machine("slow", Setting(100))],
        TraceWork(trace),
        BySize(TABLE),
        Outcome.begin(trace),
    )
    assert set(fleet.placed.values()) == {0}
    fleet = simulate_fleet(
        [machine("fast", Setting(100)), machine("slow", Setting(100))],
        TraceWork(trace), BySize(TABLE), Outcome.begin(trace), losses=[(0.0, 0)],
    )  # fmt: skip
    assert set(fleet.placed.values()) == {1}


def test_a_fleet_without_a_living_instance_says_so() -> None:
    trace = Trace(np.array([1.0]), np.array([3]), np.array([2]))
    with pytest.raises(Lacking, match="alive"):
        simulate_fleet(
            [machine("fast", Setting(10))], TraceWork(trace), RoundRobin(), Outcome.begin(trace), losses=[(0.5, 0)]
        )


def test_a_routing_table_survives_its_json_and_refuses_another_shape() -> None:
    again = RoutingTable.from_json(TABLE.as_json())
    assert again.edges == TABLE.edges and np.array_equal(again.loads, TABLE.loads)
    with pytest.raises(BadInput, match="routing table"):
        RoutingTable.from_json({"edges": [1]})
    with pytest.raises(BadInput, match="do not match"):
        RoutingTable((1, 2), ("a",), np.ones((1, 1)), np.ones((1, 1)))
