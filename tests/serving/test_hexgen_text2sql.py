"""The dispatcher's score, its books, and the order of queues: slack now, not slack as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import BadInput, Lacking
from headway.hardware.iteration_time import IterationTime
from headway.serving.dispatch.base import Call
from headway.serving.dispatch.deadlines import StageDeadlines
from headway.serving.dispatch.hexgen_text2sql import Hexgen, HexgenSettings, HexgenText2SQL, Urgency
from headway.serving.dispatch.hexgen_text2sql_proof import by_slack, lateness
from headway.serving.dispatch.stage_times import Shape, StageTimes, alone, shapes
from headway.serving.fleet import Machine, simulate_fleet
from headway.serving.job import Job
from headway.serving.outcome import Totals
from headway.serving.schedulers.base import SLO, Limits
from headway.serving.schedulers.vllm_like import PrefillFirst, VllmLikeSettings
from headway.serving.simulator import OneLane, Setting
from headway.serving.state import State
from headway.serving.workflow import Ask, Query, Stage, Workflows

COST = IterationTime((0, 1000), (0.01, 1.01))
SECONDS = {"fast": {"long": 10.0, "short": 0.1}, "slow": {"long": 30.0, "short": 0.3}}


@dataclass
class Place:
    kind: str
    alive: bool = True
    state: State = field(default_factory=lambda: State(50, 4, COST))


@dataclass
class View:
    instances: list[Place]
    now: float = 0.0


def view(*kinds: str) -> View:
    return View([Place(kind) for kind in kinds])


def times(*kinds: str) -> StageTimes:
    return StageTimes(kinds, SECONDS)


class Placer:
    """Routes calls and lets them go."""

    def __init__(self, kinds: tuple[str, ...], alpha: float, prefix_weight: float = 0.0) -> None:
        self.view, self.dispatcher = view(*kinds), Hexgen(times(*kinds), alpha, prefix_weight)
        self._ids = 0

    def put(self, stage: str, prefix: int = 0, template: str = "") -> tuple[int, Call]:
        self._ids += 1
        call = Call(Job(self._ids, 0.0, 20, 2, stage=stage), prefix=prefix, template=template)
        return self.dispatcher.route(call, self.view), call  # type: ignore[arg-type]


def test_an_idle_fleet_gives_the_call_to_the_fastest_whatever_alpha_is() -> None:
    for alpha in (0.0, 0.2, 1.0):
        assert Placer(("slow", "fast", "fast"), alpha).put("long")[0] == 1


def test_load_is_in_seconds_and_not_in_calls() -> None:
    placer = Placer(("fast", "fast"), 0.0)
    assert placer.put("long")[0] == 0
    assert [placer.put("short")[0] for _ in range(50)] == [1] * 50  # 5 s of short calls beside one long one


def test_the_score_is_speed_against_load_over_the_mean() -> None:
    placer = Placer(("fast", "slow"), 0.5)
    placer.put("long")  # fast: 0.5 - 0.5 * 10 / 5 < slow: 0.5 / 3
    assert placer.put("long")[0] == 1
    # loads 10 and 30, mean 20: fast 0.5 - 0.25, slow 0.167 - 0.75
    assert placer.put("long")[0] == 0
    everything = Placer(("fast", "slow"), 1.0)
    assert {everything.put("long")[0] for _ in range(20)} == {0}


@given(st.lists(st.tuples(st.sampled_from(("long", "short")), st.booleans()), max_size=40), st.floats(0, 1))
def test_load_is_what_is_held_and_returns_to_zero(events: list[tuple[str, bool]], alpha: float) -> None:
    placer = Placer(("fast", "slow", "slow"), alpha)
    held: list[tuple[int, Call]] = []
    for stage, ends in events:
        held.append(placer.put(stage))
        if ends:
            at, call = held.pop(0)
            placer.dispatcher.done(call, at, placer.view)  # type: ignore[arg-type]
        for at in range(3):
            kind = placer.view.instances[at].kind
            wanted = sum(SECONDS[kind][call.job.stage] for where, call in held if where == at)
            assert placer.dispatcher.load(at) == pytest.approx(wanted)
    for at, call in held:
        placer.dispatcher.done(call, at, placer.view)  # type: ignore[arg-type]
    assert [placer.dispatcher.load(at) for at in range(3)] == [0, 0, 0]


def test_dead_instances_get_nothing_and_none_alive_is_said() -> None:
    placer = Placer(("fast", "slow"), 1.0)
    placer.view.instances[0].alive = False
    assert placer.put("long")[0] == 1
    placer.view.instances[1].alive = False
    with pytest.raises(Lacking, match="alive"):
        placer.put("long")


def test_a_template_that_was_read_draws_its_calls() -> None:
    without, placer = Placer(("fast", "fast"), 0.0), Placer(("fast", "fast"), 0.0, prefix_weight=3.0)
    for each, wanted in ((without, 1), (placer, 0)):
        assert each.put("long", 20, "a")[0] == 0
        assert each.put("long", 20, "a")[0] == wanted
    assert placer.put("long", 20, "b")[0] == 1
    assert placer.put("long", 0, "a")[0] == 1  # nothing is shared


# The order


def test_slack_is_what_is_left_less_the_work_and_the_order_is_asked_again() -> None:
    urgency = Urgency(times("fast"), "fast")
    long, short = Job(1, 0.0, 9, 9, deadline=20.0, stage="long"), Job(2, 5.0, 9, 9, deadline=12.0, stage="short")
    assert urgency(long, 0.0) == 10.0 and urgency(long, 8.0) == 2.0
    assert urgency(short, 5.0) == pytest.approx(6.9)
    assert urgency(Job(3, 0.0, 9, 9, stage="long"), 0.0) == float("inf")
    late = Urgency(times("fast"), "fast", late_last=True)
    assert late(long, 8.0) == 2.0 and late(short, 8.0) < late(long, 11.0)  # by then the long one is hopeless
    hopeless = [late(Job(n, 0.0, 9, 9, deadline=5.0 - n, stage="long"), 0.0) for n in range(3)]
    assert hopeless == sorted(hopeless, reverse=True) and np.isfinite(hopeless).all()


def test_a_call_that_has_waited_overtakes() -> None:
    """Slack as it was at their arrival would admit the second first."""
    state = State(50, 4, COST, Limits(max_seqs=1), SLO(), order=Urgency(times("fast"), "fast"))
    old = Job(1, 0.0, 4, 2, deadline=20.0, stage="long")  # 10 s of slack when it came
    new = Job(2, 8.0, 4, 2, deadline=16.0, stage="short")  # 7.9 s
    for job in (new, old):
        state.submit(job)
    state.look(8.0)
    assert [job.id for job in state.waiting] == [1, 2]


def test_late_calls_fall_behind_while_they_wait() -> None:
    state = State(50, 4, COST, Limits(max_seqs=1), SLO(), order=Urgency(times("fast"), "fast", late_last=True))
    tight = Job(1, 0.0, 4, 2, deadline=11.0, stage="long")
    loose = Job(2, 0.0, 4, 2, deadline=50.0, stage="long")
    state.submit(loose)
    state.submit(tight)
    for now, wanted in ((0.5, [1, 2]), (2.0, [2, 1])):
        state.look(now)
        assert [job.id for job in state.waiting] == wanted


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=6), st.floats(0.1, 5.0))
@settings(max_examples=60, deadline=None)
def test_least_slack_is_the_best_of_all_orders_for_calls_of_one_length(due: list[float], seconds: float) -> None:
    same = [seconds] * len(due)
    best = min(lateness(order, same, due) for order in permutations(range(len(due))))
    assert lateness(by_slack(same, due), same, due) <= best + 1e-9


@given(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=15))
@settings(max_examples=30, deadline=None)
def test_alike_calls_on_one_instance_run_as_they_came(gaps: list[float]) -> None:
    known = StageTimes(("one",), {"one": {"x": 1.0}})
    queries = [Query(f"q{n}", float(t), (Stage("x", (Ask(20, 5),)),)) for n, t in enumerate(np.cumsum(gaps))]
    ends = []
    for order in (None, Urgency(known, "one")):
        machine = Machine(
            "one", lambda: PrefillFirst(VllmLikeSettings()), OneLane(COST), Setting(50, 4, Limits(2), order=order)
        )
        work = Workflows.of(queries, StageDeadlines(known, ("x",)), 4)
        simulate_fleet([machine], work, Hexgen(known, 0.3), Totals())
        ends.append([run.finished for run in work.runs])
    assert ends[0] == ends[1]


# Times


def test_times_come_from_the_table_else_from_measured_batches_else_are_asked_for() -> None:
    known = StageTimes(("fast", "slow"), {"fast": {"a": 2.0}}, shapes([("a", 10, 5), ("a", 30, 15)]), {"slow": COST})
    assert known.shapes == {"a": Shape(20, 10)}
    assert known.of("fast", "a") == known.of("fast", "a", 999) == 2.0
    assert known.of("slow", "a") == pytest.approx(alone(COST, 20, 10)) == pytest.approx(0.03 + 9 * 0.011)
    assert known.of("slow", "a", 200) > known.of("slow", "a")
    assert known.mean("a") == pytest.approx((2.0 + alone(COST, 20, 10)) / 2)
    for stage, kind in (("b", "slow"), ("a", "other")):
        with pytest.raises(BadInput, match="no time is known"):
            known.of(kind, stage)
    with pytest.raises(BadInput, match="at least 0"):
        StageTimes(("fast",), {"fast": {"a": -1.0}})


def test_instances_without_time_for_a_stage_do_not_divide_by_it() -> None:
    free = StageTimes(("a", "b"), {"a": {"x": 0.0}, "b": {"x": 0.0}})
    assert Hexgen(free, 0.5).route(Call(Job(1, 0.0, 1, 1, stage="x")), view("a", "b")) == 0  # type: ignore[arg-type]


def test_the_system_makes_the_dispatcher_that_its_settings_say() -> None:
    system: Any = HexgenText2SQL()
    known = times("fast")
    assert system.make(HexgenSettings(alpha=0.3, prefix_weight=2.0), known).alpha(0.0) == 0.3
    assert system.make(HexgenSettings(), known, lambda now: now / 10).alpha(4.0) == 0.4
    with pytest.raises(BadInput, match="without a tuner"):
        system.make(HexgenSettings(), known)
    assert not system.applies(None, None)
