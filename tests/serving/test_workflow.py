"""Queries of several stages: barriers hold, deadlines share what is left, and bad traces are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_traces import COST, SCHEDULERS, scheduler

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime
from headway.serving import chess
from headway.serving.dispatch.base import Call, Dispatcher, RoundRobin
from headway.serving.dispatch.deadlines import StageDeadlines
from headway.serving.dispatch.hexgen_text2sql import Hexgen, Urgency
from headway.serving.dispatch.stage_times import Shape, StageTimes
from headway.serving.fleet import Machine, simulate_fleet
from headway.serving.outcome import Totals
from headway.serving.schedulers.base import Limits
from headway.serving.simulator import OneLane, Setting
from headway.serving.workflow import (
    Ask,
    Flow,
    Query,
    Running,
    Stage,
    Workflows,
    at_rate,
    attainment,
    quantile,
    read_queries,
    write_queries,
)

NAMES = ("schema", "draft", "check")
SLOW = IterationTime((0, 8, 64), (0.03, 0.03, 0.2), 2e-6, 2e-6, 2e-5, 2e-5)
KINDS = ("fast", "slow", "slow")
TIMES = StageTimes(KINDS, shapes={n: Shape(30, 8) for n in NAMES}, costs={"fast": COST, "slow": SLOW})


@st.composite
def queries(draw: st.DrawFn, most: int = 6) -> list[Query]:
    """A few queries of up to 4 stages of up to 3 calls; some stages have none."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for at in range(draw(st.integers(1, most))):
        stages = [
            Stage(
                str(random.choice(NAMES)),
                tuple(_ask(random) for _ in range(int(random.integers(0, 4)))),
            )
            for _ in range(int(random.integers(1, 5)))
        ]
        stages.append(Stage("check", (_ask(random),)))
        found.append(Query(f"q{at}", float(random.exponential(0.3)), tuple(stages)))
    return sorted(found, key=lambda query: query.t)


def _ask(random: np.random.Generator) -> Ask:
    prompt = int(random.integers(1, 60))
    return Ask(prompt, int(random.integers(1, 20)), int(random.integers(0, prompt + 1)))


def machines(slug: str, pages: int = 80, order: bool = True, late_last: bool = False, seqs: int = 3) -> list[Machine]:
    return [
        Machine(
            kind,
            lambda: scheduler(slug),
            OneLane(COST if kind == "fast" else SLOW),
            Setting(
                pages, 4, Limits(max_seqs=seqs), prefix=True, order=Urgency(TIMES, kind, late_last) if order else None
            ),
        )
        for kind in KINDS
    ]


class Logged(Workflows):
    """Writes down when each call begins and ends."""

    def __init__(self, *given: object, **more: object) -> None:
        super().__init__(*given, **more)  # type: ignore[arg-type]
        self.begun: list[tuple[str, int, float]] = []
        self.ended: list[tuple[str, int, float]] = []

    def _advance(self, run: Running, now: float) -> list[Call]:
        calls = super()._advance(run, now)
        self.begun += [(run.id, len(run.done), now) for _ in calls]
        return calls

    def done(self, call: Call, now: float):  # type: ignore[no-untyped-def]
        self.ended.append((call.query.id, len(call.query.done), now))
        return super().done(call, now)


@pytest.mark.parametrize("slug", SCHEDULERS)
@given(trace=queries(), alpha=st.floats(0, 1), late_last=st.booleans())
@settings(max_examples=12, deadline=None)
def test_a_stage_begins_when_the_last_call_of_the_one_before_is_done(
    slug: str, trace: list[Query], alpha: float, late_last: bool
) -> None:
    work, totals = Logged.of(trace, StageDeadlines(TIMES, NAMES), 4), Totals()
    dispatcher = Hexgen(TIMES, alpha)
    simulate_fleet(machines(slug, late_last=late_last), work, dispatcher, totals)
    assert totals.unfinished == 0 and totals.rejected == 0
    assert totals.ended == sum(query.calls for query in trace)
    assert all(dispatcher.load(at) == 0 for at in range(3))
    for query, run in zip(trace, work.runs, strict=True):
        assert run.finished is not None and not run.failed
        full = [stage for stage in query.stages if stage.calls]
        assert [(s.name, [(a.prompt, a.output) for a in s.calls]) for s in run.done] == [
            (s.name, [(a.prompt, a.output) for a in s.calls]) for s in full
        ]
        for index in range(1, len(full)):
            begun = {t for id, at, t in work.begun if (id, at) == (query.id, index)}
            ended = [t for id, at, t in work.ended if (id, at) == (query.id, index - 1)]
            assert begun == {max(ended)} and len(ended) == len(full[index - 1].calls)
        last = [t for id, _, t in work.ended if id == query.id]
        assert run.finished == max(last)


@given(
    trace=queries(),
    losses=st.lists(st.tuples(st.floats(0, 2), st.integers(1, 2)), max_size=2, unique_by=lambda loss: loss[1]),
    alpha=st.floats(0, 1),
)
@settings(max_examples=40, deadline=None)
def test_a_lost_instance_leaves_no_load_and_no_call(
    trace: list[Query], losses: list[tuple[float, int]], alpha: float
) -> None:
    work, totals, dispatcher = Workflows.of(trace, StageDeadlines(TIMES, NAMES), 4), Totals(), Hexgen(TIMES, alpha, 0.3)
    fleet = simulate_fleet(machines("sarathi-serve"), work, dispatcher, totals, losses=losses)
    assert totals.unfinished == 0 and all(run.finished is not None and not run.failed for run in work.runs)
    assert all(dispatcher.load(at) == 0 for at in range(3))
    assert fleet.now >= max(query.t for query in trace)


# Deadlines


@given(st.lists(st.sampled_from(NAMES), max_size=8), st.floats(0.1, 100), st.floats(0, 200))
def test_stage_deadlines_shrink_with_what_has_passed_and_never_exceed_the_querys(
    template: list[str], slo: float, elapsed: float
) -> None:
    deadlines = StageDeadlines(TIMES, template, slo)
    early = deadlines.next(deadlines.begin(), "draft", 0.0, 0.0)
    late = deadlines.next(deadlines.begin(), "draft", 0.0, elapsed) - elapsed
    assert np.isfinite(late) and late <= early + 1e-9 <= slo + 1e-6
    assert late < 0 if elapsed > slo * (1 + 1e-9) else late >= -1e-9


def test_a_stage_gets_its_share_of_the_expected_work() -> None:
    seconds = {"a": 1.0, "b": 3.0, "c": 4.0}
    times = StageTimes(("x",), {"x": seconds})
    deadlines = StageDeadlines(times, ("a", "b", "c"), 16.0)
    remaining = deadlines.begin()
    assert deadlines.next(remaining, "a", 10.0, 10.0) == pytest.approx(12.0)
    assert deadlines.next(remaining, "b", 10.0, 12.0) == pytest.approx(18.0)  # 14 * 3 / 7 from 12 on
    assert deadlines.next(remaining, "c", 10.0, 20.0) == pytest.approx(26.0)  # all that is left
    assert StageDeadlines(times, ("a", "b", "c")).slo_s == 8.0
    assert StageDeadlines(times, ("a", "b", "c"), slo_scale=2.0).slo_s == 16.0


def test_each_query_strikes_stages_from_a_template_of_its_own() -> None:
    times = StageTimes(("x",), {"x": dict.fromkeys(chess.STAGES, 1.0)})
    deadlines = StageDeadlines(times, chess.TEMPLATE, 100.0)
    one, other = deadlines.begin(), deadlines.begin()
    for name in ("retriever", "keywords", "retriever", "retriever", "retriever", "candidate", "revise"):
        deadlines.next(one, name, 0.0, 0.0)
    assert one.count("revise") == 3
    deadlines.next(one, "unit_tester", 0.0, 0.0)
    assert "revise" not in one and one.count("unit_tester") == 2
    deadlines.next(one, "revise", 0.0, 0.0)  # nobody expected it
    assert one.count("unit_tester") == 2
    assert tuple(other) == chess.TEMPLATE == deadlines.template


def test_stages_without_any_time_share_alike_and_unknown_ones_are_named() -> None:
    times = StageTimes(("x",), {"x": {"a": 0.0, "b": 0.0}})
    assert StageDeadlines(times, ("a", "b"), 8.0).next(["a", "b"], "a", 0.0, 0.0) == 4.0
    with pytest.raises(BadInput, match="no time is known for stage 'c' on 'x'"):
        times.mean("c")
    for slo in (0.0, -1.0, float("nan")):
        with pytest.raises(BadInput, match="limit"):
            StageDeadlines(times, ("a",), slo)
    with pytest.raises(BadInput, match="limit"):
        StageDeadlines(times, ("a", "b"))  # sums to 0
    with pytest.raises(BadInput, match="without an instance"):
        StageTimes(())


# Edges


def run_one(query: Query, dispatcher: Dispatcher | None = None, pages: int = 80) -> Running:
    work = Workflows.of([query], StageDeadlines(TIMES, NAMES), 4)
    simulate_fleet(machines("vllm-like", pages), work, dispatcher or Hexgen(TIMES, 0.2), Totals())
    return work.runs[0]


def test_a_call_too_large_for_every_instance_fails_its_query_by_the_stages_name() -> None:
    query = Query("q", 0.0, (Stage("schema", (Ask(10, 2),)), Stage("draft", (Ask(900, 2), Ask(3, 2)))))
    run = run_one(query)
    assert "stage draft" in run.failed and "900 tokens" in run.failed and run.latency == float("inf")
    assert quantile([run]) == float("inf") and attainment([run], 1e9) == 0.0


def test_a_large_call_goes_where_it_fits() -> None:
    query = Query("q", 0.0, (Stage("draft", (Ask(200, 2),)),))
    small, large = machines("vllm-like", 20)[:1], machines("vllm-like", 80)[1:2]
    work = Workflows.of([query], StageDeadlines(TIMES, NAMES), 4)
    fleet = simulate_fleet(small + large, work, Hexgen(TIMES, 1.0), Totals())
    assert not work.runs[0].failed and fleet.placed == {0: 1}


def test_stages_without_calls_are_skipped_and_a_single_instance_takes_everything() -> None:
    query = Query("q", 0.0, (Stage("schema", ()), Stage("draft", (Ask(5, 2),)), Stage("check", ())))
    work = Workflows.of([query], None, 4)
    fleet = simulate_fleet(machines("vllm-like")[:1], work, Hexgen(TIMES, 0.0), Totals())
    assert [stage.name for stage in work.runs[0].done] == ["draft"] and set(fleet.placed.values()) == {0}


def test_an_empty_workflow_and_an_endless_one_are_refused() -> None:
    with pytest.raises(BadInput, match="without any call"):
        Query("q", 0.0, (Stage("schema", ()),))

    def endless() -> Flow:
        while True:
            yield Stage("schema", ())

    def circling() -> Flow:
        while True:
            yield Stage("draft", (Ask(1, 1),))

    for flow in (endless, circling):
        with pytest.raises(BadInput, match="more than 1000 stages"):
            simulate_fleet(machines("vllm-like"), Workflows([("q", 0.0, flow)]), RoundRobin(), Totals())


def test_what_follows_may_depend_on_what_came_out() -> None:
    seen: list[int] = []

    def flow() -> Flow:
        calls = yield Stage("draft", (Ask(5, 2), Ask(5, 3)))
        seen.append(len(calls))
        for _ in calls:
            calls = yield Stage("check", (Ask(4, 1),))
        return "value"

    work = Workflows([("q", 1.0, flow)])
    simulate_fleet(machines("vllm-like"), work, RoundRobin(), Totals())
    assert seen == [2] and [s.name for s in work.runs[0].done] == ["draft", "check", "check"]
    assert work.runs[0].value == "value"


# Files


@given(trace=queries())
@settings(max_examples=20, deadline=None)
def test_a_trace_survives_its_file(trace: list[Query], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("trace") / "q.jsonl"
    write_queries(path, trace)
    assert read_queries(path) == trace


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("", "holds no query"),
        ("{", "line 1"),
        ("[]", "line 1"),
        ('{"t": 0, "stages": []}', "without any call"),
        ('{"t": -1, "stages": [{"name": "a", "calls": [{"prompt": 1, "output": 1}]}]}', "t=-1"),
        ('{"t": true, "stages": [{"name": "a", "calls": [{"prompt": 1, "output": 1}]}]}', "t=True"),
        ('{"t": 0, "stages": [{"name": "a", "calls": [{"prompt": 0, "output": 1}]}]}', "prompt=0"),
        ('{"t": 0, "stages": [{"name": "a", "calls": [{"prompt": 1.5, "output": 1}]}]}', "prompt=1.5"),
        ('{"t": 0, "stages": [{"name": "a", "calls": [{"prompt": 2, "output": 1, "prefix": 3}]}]}', "prefix=3"),
        ('{"t": 0, "stages": [{"name": 3, "calls": [{"prompt": 2, "output": 1}]}]}', "name"),
        ('{"t": 0}', "stages"),
    ],
)
def test_bad_traces_are_named(line: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(BadInput, match=what):
        read_queries(path)


def test_a_trace_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    with pytest.raises(BadInput, match="check the path"):
        read_queries(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="no text"):
        read_queries(path)


# The published workflow


@pytest.mark.parametrize("trace", chess.TRACES)
def test_generated_queries_have_the_published_statistics(trace: str) -> None:
    found = chess.generate(600, 0.5, seed=1, trace=trace)
    which = chess.TRACES.index(trace)
    assert [q.t for q in found] == sorted(q.t for q in found)
    assert len(found) / found[-1].t == pytest.approx(0.5, rel=0.15)
    for name, template in chess.STAGES.items():
        asks = [ask for query in found for stage in query.stages if stage.name == name for ask in stage.calls]
        assert len(asks) / len(found) == pytest.approx(template.calls[which], rel=0.12)
        assert np.mean([ask.prompt for ask in asks]) == pytest.approx(template.prompt[which].mean, rel=0.05)
        assert np.mean([ask.output for ask in asks]) == pytest.approx(template.output[which].mean, rel=0.2)
        assert {ask.prefix for ask in asks} <= {min(p, ask.prompt) for p in template.prefix for ask in asks}
    assert 14 <= np.mean([query.calls for query in found]) <= 22


def test_the_simulated_machines_take_what_the_authors_measured() -> None:
    from headway.serving.dispatch.stage_times import alone

    for kind, row in chess.SECONDS.items():
        cost = chess.iteration_time(kind)
        for stage, template in chess.STAGES.items():
            seconds = alone(cost, template.prompt[1].mean, template.output[1].mean)
            assert seconds == pytest.approx(row[stage], rel=0.45)
    with pytest.raises(BadInput, match="no machine"):
        chess.iteration_time("TPU")
    with pytest.raises(BadInput, match="no trace"):
        chess.generate(1, 1.0, trace="x")


def test_a_trace_at_another_rate_keeps_its_pattern() -> None:
    found = chess.generate(50, 0.1, seed=2)
    fast = at_rate(found, 1.0)
    gaps, wanted = np.diff([q.t for q in fast]), np.diff([q.t for q in found])
    assert np.allclose(gaps / gaps.sum(), wanted / wanted.sum()) and fast[0].t == 0.0
    assert 49 / fast[-1].t == pytest.approx(1.0)
    with pytest.raises(BadInput, match="rate"):
        at_rate(found, 0.0)
