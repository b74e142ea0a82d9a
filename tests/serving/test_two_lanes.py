"""Two lanes: no request in both, no page lost over random steps, and what semi-PD and Nexus each promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_traces import COST, SETTINGS, scheduler, traces

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load
from headway.hardware.lane_time import LaneTime, Speed
from headway.serving.devices import MeasuredLanes, Roofline
from headway.serving.lane_runs import page_walk
from headway.serving.prefix import PrefixTree
from headway.serving.schedulers.base import SLO, Limits, Plan, View
from headway.serving.schedulers.nexus import Nexus, NexusSettings, Objective, greedy
from headway.serving.schedulers.semi_pd import SemiPD, SemiPDSettings
from headway.serving.schedulers.semi_pd_control import LatencyModel, Split, Window, adjust, fit
from headway.serving.schedulers.two_lanes import DECODE, PREFILL, TwoLanes
from headway.serving.simulator import Setting, simulate
from headway.serving.trace import Trace

SYSTEMS = ["nexus", "semi-pd"]
ONE_CORE = IterationTime((0, 8, 64), (0.012, 0.02, 0.16), 2e-6, 1.5e-6, 1e-5, 1e-5)
DEVICE = MeasuredLanes((ONE_CORE, COST), 0.2)


def audit(made: TwoLanes, plans: list[Plan], views: list[Any]) -> TwoLanes:
    """The same scheduler, each of its plans checked and kept."""
    inner = made.decide
    running: dict[str, set[int]] = {}

    def decide(view: View) -> Plan:
        for lane in view.idle:
            running.pop(lane, None)
        decoding = {job.id for job in view.decoding}
        plan = inner(view)
        for lane, batch in plan.lanes.items():
            assert lane in view.idle
            assert bool(batch.chunks) != bool(batch.decode), "a batch never mixes the two kinds of work"
            jobs = {chunk.job.id for chunk in batch.chunks} if batch.chunks else decoding
            for other in running.values():
                assert not jobs & other, "a request is in two lanes"
            running[lane] = jobs
        if plan.shares is not None:
            assert set(plan.shares) == {PREFILL, DECODE} and all(0 < share <= 1 for share in plan.shares.values())
        plans.append(plan)
        views.append(view.now)
        return plan

    made.decide = decide  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("slug", SYSTEMS)
@given(trace=traces(), setting=SETTINGS)
@settings(max_examples=40, deadline=None)
def test_no_request_is_in_two_lanes(slug: str, trace: Trace, setting: Setting) -> None:
    made: Any = scheduler(slug)
    outcome = simulate(trace, audit(made, [], []), DEVICE, setting)
    assert outcome.unfinished == 0 and (outcome.generated == trace.output).all()


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("slug", SYSTEMS)
def test_pages_are_conserved_over_random_steps(slug: str, prefix: bool) -> None:
    count, wrong = page_walk(scheduler(slug), 5_000, 0, PrefixTree() if prefix else None)
    assert count > 300 and not wrong


@pytest.mark.nightly
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("slug", SYSTEMS)
def test_pages_are_conserved_over_a_million_random_steps(slug: str, prefix: bool) -> None:
    count, wrong = page_walk(scheduler(slug), 1_000_000, 1, PrefixTree() if prefix else None)
    assert count > 100_000 and not wrong


def test_a_full_pool_lets_the_prompt_that_runs_finish_instead_of_computing_answers_again() -> None:
    trace = Trace(np.array([0.0, 0.001]), np.array([39, 70]), np.array([12, 4]))
    outcome = simulate(trace, scheduler("semi-pd"), DEVICE, Setting(pages=30, page_tokens=4, limits=Limits(max_seqs=4)))
    assert outcome.unfinished == 0 and outcome.preemptions[0] == 0


# ---- semi-PD --------------------------------------------------------------------------------------------------------


@given(
    a=st.floats(0.001, 10), b=st.floats(0, 5), shares=st.lists(st.integers(5, 95), min_size=2, max_size=9, unique=True)
)
def test_the_fit_finds_the_law(a: float, b: float, shares: list[int]) -> None:
    found = fit([(1.0 / share, a / share + b) for share in shares])
    assert found == pytest.approx((a, b), rel=1e-6, abs=1e-6)


@given(points=st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 100)), min_size=1, max_size=9))
def test_a_fit_has_no_negative_part(points: list[tuple[float, float]]) -> None:
    assert min(fit(points)) >= 0


def test_a_queue_that_is_overfull_has_no_time_to_the_first_token() -> None:
    model = LatencyModel()
    model.prompt_s = 0.1
    assert model.ttft(40.0, 40.0) == float("inf")
    assert model.ttft(50.0, 40.0) == pytest.approx(1.0)


windows = st.builds(
    Window,
    st.builds(Split, st.sampled_from(range(5, 101, 5)), st.sampled_from(range(5, 101, 5))),
    st.one_of(st.none(), st.floats(0.01, 10)),
    st.one_of(st.none(), st.floats(0.01, 10)),
    st.floats(0, 99),
)


@given(seen=st.lists(windows, min_size=1, max_size=8))
def test_the_controller_moves_toward_the_one_limit_that_is_broken(seen: list[Window]) -> None:
    model = LatencyModel()
    model.prompt_s, model.token_s = 0.1, 0.01
    for window in seen:
        model.observe(window)
    last = seen[-1]
    after = adjust(last, model, 1.0, 1.0, 5.0, 4)
    broken = [value is not None and value > 1.0 for value in (last.ttft, last.tpot)]
    assert 5 <= after.x <= 100 and 5 <= after.y <= 100
    if broken[0] == broken[1]:
        assert after == last.split
    elif broken[0]:
        assert after.prefill >= last.split.prefill
    else:
        assert after.decode >= last.split.decode


def test_steps_come_out_of_the_free_part_first() -> None:
    assert Split(80.0, 100.0).toward_prefill(5.0) == Split(85.0, 100.0)
    assert Split(100.0, 60.0).toward_prefill(5.0) == Split(100.0, 55.0)
    assert Split(100.0, 5.0).toward_prefill(5.0) == Split(100.0, 5.0)
    assert Split(60.0, 100.0).toward_decode(5.0) == Split(55.0, 100.0)


def steady(rate: float, count: int, prompt: int, output: int, seed: int = 0) -> Trace:
    random = np.random.default_rng(seed)
    return Trace(np.cumsum(random.exponential(1 / rate, count)), np.full(count, prompt), np.full(count, output))


def test_the_share_moves_to_prompts_that_come_too_late() -> None:
    made = SemiPD(SemiPDSettings(x0=20, y0=80, window_iters=20))
    slo = SLO(ttft_s=0.5, tbt_s=1.0, quantile=0.9)
    simulate(steady(3.0, 120, 100, 20), made, DEVICE, Setting(800, 4, slo=slo))
    assert made.current.prefill > 40 and len(made.windows) > 5


def test_no_split_is_blamed_for_an_overload() -> None:
    made = SemiPD(SemiPDSettings(window_iters=20, prefill_chunk=200))
    slo = SLO(ttft_s=0.05, tbt_s=1.0, quantile=0.9)
    simulate(steady(40.0, 400, 200, 4), made, DEVICE, Setting(800, 4, slo=slo), until=9.0)
    assert made.overloaded and made.current.y >= 50


def test_each_lane_takes_its_new_share_where_its_own_batch_begins() -> None:
    made = SemiPD(SemiPDSettings(x0=50, y0=50, dynamic=False))
    plans: list[Plan] = []
    audited = audit(made, plans, [])
    inner = audited.decide

    def moving(view: View) -> Plan:
        if len(plans) == 40:
            made.current = Split(70.0, 30.0)
        return inner(view)

    audited.decide = moving  # type: ignore[method-assign]
    simulate(steady(4.0, 40, 60, 20), audited, DEVICE, Setting(800, 4))
    moved = [plan for plan in plans[40:] if plan.shares is not None]
    assert 1 <= len(moved) <= 2
    assert moved[-1].shares == {PREFILL: 0.7, DECODE: 0.3}


def test_a_static_split_stays() -> None:
    made = SemiPD(SemiPDSettings(x0=30, y0=70, dynamic=False))
    simulate(steady(4.0, 60, 100, 20), made, DEVICE, Setting(800, 4, slo=SLO(0.01, 0.01)))
    assert made.current == Split(30.0, 70.0) and not made.windows


@pytest.mark.parametrize(
    "wrong", [{"x0": 0}, {"y0": 101}, {"ttft_slo_ms": 0}, {"window_iters": 0}, {"prefill_chunk": 0}]
)
def test_semi_pd_refuses_settings_outside_their_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        SemiPDSettings.parse(wrong, "semi-pd")


# ---- Nexus ----------------------------------------------------------------------------------------------------------

GPU = Roofline(90e12, 0.8e12, 6e9, 6e9, 3e5, 36864.0, 1e-3)
MODEL = LaneTime(GPU.cost(), memory=Speed(0.5, 0.2))
prompts = st.integers(16, 2048).flatmap(
    lambda n: st.builds(lambda ctx: Load(n, n * (ctx + n / 2), 0, 0, 1, 1), st.integers(0, 8000))
)
answers = st.builds(lambda n, ctx: Load(n, 0.0, n, n * ctx, n, n), st.integers(1, 256), st.integers(10, 4000))


@given(prefill=prompts, decode=answers, start=st.integers(1, 9), decode_first=st.booleans(), slack=st.floats(1.0, 5.0))
def test_the_search_ends_where_trying_every_split_ends(
    prefill: Load, decode: Load, start: int, decode_first: bool, slack: float
) -> None:
    limit = slack * MODEL.alone(prefill if decode_first else decode, 1.0)
    objective = Objective(lambda r: MODEL.both(prefill, decode, r), decode_first, limit)
    found = greedy(objective, start / 10, 0.1, decode_first)
    assert 0.1 - 1e-9 <= found <= 0.9 + 1e-9
    every = {at / 10: objective(at / 10) for at in range(1, 10)}
    feasible = {share: value for share, (value, holds) in every.items() if holds}
    if not feasible:
        assert found == (0.9 if decode_first else 0.1)
    else:
        assert every[found][1]
        assert every[found][0] <= min(feasible.values()) * 1.15


def nexus(**settings: Any) -> Nexus:
    return Nexus(NexusSettings(**settings))


def first_tokens(made: TwoLanes, trace: Trace) -> list[int]:
    outcome = simulate(trace, made, DEVICE, Setting(4000, 4))
    return np.argsort(outcome.arrival + outcome.ttft, kind="stable").tolist()


def test_short_prompts_are_read_first_and_equal_ones_as_they_came() -> None:
    trace = Trace(np.array([0.0, 0.001, 0.002, 0.003, 0.004]), np.array([10, 400, 30, 200, 30]), np.ones(5, int))
    assert first_tokens(nexus(max_prefill_tokens=16, gamma=0), trace) == [0, 2, 4, 3, 1]
    assert first_tokens(nexus(max_prefill_tokens=16, fcfs=True), trace) == [0, 1, 2, 3, 4]


def test_age_keeps_a_long_prompt_from_waiting_forever() -> None:
    random = np.random.default_rng(0)
    arrival = np.sort(random.uniform(0, 20, 500))
    prompt = np.full(500, 40)
    prompt[100] = 400
    trace = Trace(arrival, prompt, np.full(500, 1))
    waits = [
        simulate(trace, nexus(max_prefill_tokens=40, gamma=gamma), DEVICE, Setting(4000, 4)).delay[100]
        for gamma in (0.0, 200.0)
    ]
    assert waits[1] < 0.5 * waits[0]


def test_pages_decide_which_phase_comes_first() -> None:
    trace = steady(6.0, 80, 100, 30)
    seen: dict[float, list[float]] = {}
    for switch in (0.0, 1.0):
        made = nexus(kv_switch=switch, alpha=8.0, beta=4.0, delta=0.0)
        plans: list[Plan] = []
        simulate(trace, audit(made, plans, []), DEVICE, Setting(800, 4))
        seen[switch] = [plan.shares[PREFILL] for plan in plans if plan.shares is not None]
    assert np.mean(seen[0.0][1:]) < np.mean(seen[1.0][1:])


def test_small_moves_are_not_made() -> None:
    trace = steady(8.0, 200, 60, 30)
    switches = {}
    for delta in (0.0, 0.1):
        made = nexus(delta=delta, beta=3.0, kv_switch=1.0)
        simulate(trace, made, DEVICE, Setting(2000, 4))
        switches[delta] = made.switches
    assert switches[0.1] <= switches[0.0]


@pytest.mark.parametrize("wrong", [{"alpha": 0.9}, {"beta": 0.5}, {"quantum": 0.6}, {"gamma": -1}, {"kv_switch": 1.5}])
def test_nexus_refuses_settings_outside_their_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        NexusSettings.parse(wrong, "nexus")
