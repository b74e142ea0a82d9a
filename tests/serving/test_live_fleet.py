"""Real engines behind the simulator's dispatcher: the same tokens, lost engines, and a workflow that runs its SQL."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_traces import COST, scheduler

from headway.core.errors import BadInput, Lacking
from headway.llm.language_model import LanguageModel
from headway.serving.dispatch.base import Call, RoundRobin
from headway.serving.dispatch.deadlines import StageDeadlines
from headway.serving.dispatch.hexgen_text2sql import Hexgen, Urgency
from headway.serving.dispatch.stage_times import Shape, StageTimes
from headway.serving.engine import Engine
from headway.serving.live_fleet import LiveInstance, run_fleet
from headway.serving.request import Event, Request
from headway.serving.schedulers.base import Limits
from headway.serving.text2sql import (
    Answer,
    Database,
    Lengths,
    Result,
    Text2SQL,
    make_database,
    make_questions,
    statement,
    vote,
)
from headway.serving.workflow import Ask, Flow, Stage, Workflows

NAMES = ("draft", "check")
KINDS = ("one", "other")
TIMES = StageTimes(KINDS, shapes={name: Shape(10, 5) for name in NAMES}, costs=dict.fromkeys(KINDS, COST))


def instances(model: LanguageModel, slug: str = "vllm-like", engine: Any = Engine) -> list[LiveInstance]:
    return [
        LiveInstance(
            kind,
            engine(
                model, scheduler(slug), pages=40, cost=COST, limits=Limits(max_seqs=2, max_len=256),
                order=Urgency(TIMES, kind),
            ),
        )
        for kind in KINDS
    ]  # fmt: skip


def ask(model: LanguageModel, seed: int, prompt: int = 12, output: int = 5) -> Ask:
    tokens = np.random.default_rng(seed).integers(0, model.architecture.vocab, prompt).tolist()
    return Ask(prompt, output, request=Request(tokens, output, ignore_end=True))


def flow(model: LanguageModel, seed: int) -> Flow:
    """Two drafts, then a check of what both said."""
    calls = yield Stage("draft", (ask(model, seed), ask(model, seed + 1)))
    tokens = [token for call in calls for token in call.answer]
    calls = yield Stage("check", (Ask(len(tokens), 3, request=Request(tokens, 3, ignore_end=True)),))
    return [*tokens, *calls[0].answer]


def run(model: LanguageModel, dispatcher: Any, made: list[LiveInstance]) -> Workflows:
    queries = [(f"q{n}", 0.01 * n, lambda n=n: flow(model, 10 * n)) for n in range(6)]
    work = Workflows(queries, StageDeadlines(TIMES, NAMES), 64)
    run_fleet(made, work, dispatcher)
    return work


@pytest.mark.parametrize("slug", ["vllm-like", "sarathi-serve", "nexus", "semi-pd"])
def test_a_workflow_says_the_same_wherever_and_in_whatever_order_its_calls_run(
    slug: str, tiny_served: LanguageModel
) -> None:
    dispatcher = Hexgen(TIMES, 0.3)
    plain = run(tiny_served, RoundRobin(), instances(tiny_served))
    ours = run(tiny_served, dispatcher, instances(tiny_served, slug))
    assert [each.value for each in ours.runs] == [each.value for each in plain.runs]
    assert all(len(each.value) == 13 for each in ours.runs)
    assert dispatcher.load(0) == dispatcher.load(1) == 0
    for each in ours.runs:
        assert not each.failed and each.finished is not None and each.finished > each.arrival
        assert [(s.name, len(s.calls)) for s in each.record().stages] == [("draft", 2), ("check", 1)]
        assert [a.output for s in each.record().stages for a in s.calls] == [5, 5, 3]


class Breaking(Engine):
    """An engine that fails in its third step."""

    def step(self) -> list[Event]:
        if self.steps == 2:
            raise RuntimeError("the card fell out")
        return super().step()


def test_the_calls_of_an_engine_that_fails_run_elsewhere(tiny_served: LanguageModel) -> None:
    plain = run(tiny_served, RoundRobin(), instances(tiny_served))
    made = [*instances(tiny_served, engine=Breaking)[:1], *instances(tiny_served)[1:]]
    dispatcher = Hexgen(TIMES, 0.5)
    ours = run(tiny_served, dispatcher, made)
    assert not made[0].alive and made[1].alive
    assert [each.value for each in ours.runs] == [each.value for each in plain.runs]
    assert dispatcher.load(0) == dispatcher.load(1) == 0


def test_a_fleet_that_fails_whole_says_of_what(tiny_served: LanguageModel) -> None:
    with pytest.raises(Lacking, match="the card fell out"):
        run(tiny_served, Hexgen(TIMES, 0.5), instances(tiny_served, engine=Breaking))


def test_a_call_no_engine_can_hold_fails_its_query_by_the_stages_name(tiny_served: LanguageModel) -> None:
    def large() -> Flow:
        yield Stage("draft", (ask(tiny_served, 1, prompt=300),))

    work = Workflows([("q", 0.0, large), ("p", 0.0, lambda: flow(tiny_served, 1))], None, 64)
    run_fleet(instances(tiny_served), work, Hexgen(TIMES, 0.5))
    assert "stage draft" in work.runs[0].failed and "context of 256" in work.runs[0].failed
    assert not work.runs[1].failed


# Text to SQL


@pytest.fixture
def database(tmp_path: Path) -> Database:
    make_database(tmp_path / "d.db", seed=3)
    return Database(tmp_path / "d.db")


def test_databases_and_questions_repeat(tmp_path: Path, database: Database) -> None:
    make_database(tmp_path / "again.db", seed=3)
    again = Database(tmp_path / "again.db")
    for table in database.tables:
        assert database.run(f"SELECT * FROM {table}") == again.run(f"SELECT * FROM {table}")
    assert make_questions(9, 4) == make_questions(9, 4) != make_questions(9, 5)


def test_sql_is_run_read_only_and_bounded(database: Database) -> None:
    assert database.run("SELECT COUNT(*) FROM orders") == Result((("40",),))
    assert "no such column" in database.run("SELECT nme FROM customers").error
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n"
    assert "interrupted" in database.run(endless).error
    assert len(database.run("SELECT a.id FROM orders a, orders b").rows or ()) == 200
    for refused in (
        "DELETE FROM orders", "ATTACH 'x.db' AS x", "PRAGMA user_version = 3", "SELECT 1; SELECT 2", "", "SELECT \x00",
        "SELECT zeroblob(900000000)", "CREATE TEMP TABLE t (a)",
    ):  # fmt: skip
        assert database.run(refused).error, refused
    assert database.run("SELECT COUNT(*) FROM orders") == Result((("40",),))


def test_results_vote_and_errors_do_not() -> None:
    one, two, bad = Result((("1",),)), Result((("2",),)), Result(None, "no such table")
    assert vote([bad, one]) == 1 and vote([one, one]) == 0 and vote([two, one, one]) == 1
    assert vote([one, two]) is None and vote([bad, bad]) is None


def test_the_first_statement_of_a_text_is_taken() -> None:
    assert statement(" COUNT(*)\nFROM  orders; DROP TABLE orders", "SELECT") == "SELECT COUNT(*) FROM orders"
    assert statement("SELECT 1\n\nQuestion: and now?") == "SELECT 1" and len(statement("x" * 5000)) == 600


def test_a_question_goes_through_its_stages_and_errors_bring_revisions(
    tiny_served: LanguageModel, database: Database
) -> None:
    made = Text2SQL(tiny_served, database, Lengths(3, 8, 6, 2))
    walk = made.flow("How many orders are there?")
    texts = {"candidate": [" nothing", " COUNT(*) FROM rooms"], "revise": [" COUNT(*) FROM orders"]}
    seen, calls = [], None
    while True:
        try:
            stage = walk.send(calls)  # type: ignore[arg-type]
        except StopIteration as over:
            answer = over.value
            break
        seen.append(stage.name)
        calls = []
        for at, wanted in enumerate(stage.calls):
            assert wanted.prompt == len(wanted.request.tokens) and wanted.prefix < wanted.prompt
            call = Call(None)  # type: ignore[arg-type]
            call.answer = tiny_served.encode(texts.get(stage.name, [" orders"])[at], start=False)
            calls.append(call)
    assert seen == ["retriever", "candidate", "revise"]
    assert answer == Answer("SELECT COUNT(*) FROM orders", Result((("40",),)), 1, 2)


def test_files_that_are_no_database_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unable to open"):
        Database(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one " * 20)
    with pytest.raises(BadInput, match="not a database"):
        Database(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "empty.db").execute("PRAGMA user_version = 1").connection.close()
    with pytest.raises(BadInput, match="no table"):
        Database(tmp_path / "empty.db")
