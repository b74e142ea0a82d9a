"""The fleet planner from its problem file to its plan."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.cli.main import main
from headway.core.errors import BadInput
from headway.core.system import PlanContext
from headway.planning.buckets import Buckets
from headway.planning.datasheet import LLAMA2_7B
from headway.planning.melange import Melange, MelangeSettings
from headway.planning.melange_proof import SHEETS
from headway.planning.throughput import LoadRun, steady_throughput, sustained
from headway.serving.dispatch.by_size import RoutingTable
from headway.serving.outcome import Outcome
from headway.serving.schedulers.base import SLO
from headway.serving.trace import Trace

EXAMPLE = re.search(
    r"```toml title=\"fleet.toml\"\n(.*?)```",
    (Path(__file__).parents[2] / "docs" / "plans.md").read_text(),
    re.DOTALL,
)
GIVEN: dict[str, Any] = {
    "rate": 30.0,
    "buckets": {"in_edges": [100, 1000], "out_edges": [50, 500], "shares": [[0.2, 0.1], [0.5, 0.2]]},
    "type": [
        {"name": "a10g", "price": 1.01, "throughput": [[2, 1], [5, 2]]},
        {"name": "a100", "price": 3.67, "throughput": [[20, 20], [40, 20]]},
    ],
}


def never(*_: Any) -> Any:
    raise AssertionError("nothing is to be loaded")


def planned(problem: dict[str, Any], **settings: Any) -> dict[str, Any]:
    plan: dict[str, Any] = Melange().plan(problem, MelangeSettings(**settings), PlanContext(never))
    return plan


def test_given_throughputs_are_enough() -> None:
    plan = planned(GIVEN, headroom=0.0, slice_factor=4, route_by="size")
    assert [(item["type"], item["count"]) for item in plan["fleet"]] == [("a10g", 2), ("a100", 1)]
    assert plan["cost_usd_per_h"] == pytest.approx(5.69) and plan["optimal"] and plan["met"]
    assert plan["single_type_usd_per_h"] == pytest.approx({"a10g": 12.12, "a100": 7.34})
    table = RoutingTable.from_json(plan["routing"])
    assert table.shares.sum(axis=1) == pytest.approx([1, 1])
    by_prompt = planned(GIVEN, headroom=0.0, slice_factor=4)
    assert by_prompt["cost_usd_per_h"] >= plan["cost_usd_per_h"] - 1e-9
    assert planned(GIVEN, headroom=0.5)["cost_usd_per_h"] >= by_prompt["cost_usd_per_h"]


def test_the_documented_problem_gives_the_papers_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert EXAMPLE is not None
    (tmp_path / "fleet.toml").write_text(EXAMPLE[1])
    words = ["plan", "melange", str(tmp_path / "fleet.toml"), "-o", str(tmp_path / "plan.json"), "--json", "--quiet"]
    assert main([*words, "--set", "profile=formula", "--set", "check=300", "--threads", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["system"] == "melange" and plan["schema"] == 1
    assert {item["type"]: item["count"] for item in plan["fleet"]} == {"l4": 1, "a10g": 1}
    assert plan["cost_usd_per_h"] == pytest.approx(1.71)
    assert plan["predicted"]["attainment"] >= 0.99 and plan["predicted"]["steady"]
    assert printed["fleet"] == plan["fleet"]


def test_a_fleet_that_nothing_can_save_is_written_and_answers_no(tmp_path: Path) -> None:
    assert EXAMPLE is not None
    problem = tomllib.loads(EXAMPLE[1])
    problem["slo"] = {"tpot_ms": 120, "ttft_ms": 1}  # not even a prompt's own time
    plan = planned(problem, profile="formula", check=100, repairs=1)
    assert not plan["met"] and any("headroom" in note for note in plan["notes"])


def test_no_requests_need_no_machines() -> None:
    plan = planned({**GIVEN, "rate": 0.0})
    assert plan["cost_usd_per_h"] == 0 and plan["met"] and not any(item["count"] for item in plan["fleet"])


def with_type(**changed: Any) -> dict[str, Any]:
    return {**GIVEN, "type": [{**GIVEN["type"][0], **changed}]}


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({**GIVEN, "buckets": {**GIVEN["buckets"], "shares": [[0.2, 0.1], [0.5, 0.3]]}}, "sum to 1.1"),
        ({**GIVEN, "buckets": {**GIVEN["buckets"], "shares": [[0.2, -0.1], [0.5, 0.4]]}}, "negative"),
        ({**GIVEN, "buckets": {**GIVEN["buckets"], "shares": [[0.5, 0.5]]}}, "1 rows of .* the buckets are 2 by 2"),
        ({**GIVEN, "buckets": {**GIVEN["buckets"], "in_edges": [100, 100]}}, "do not rise"),
        ({**GIVEN, "rate": -1.0}, "rate=-1.0"),
        ({**GIVEN, "rats": 1.0}, "no key 'rats'"),
        ({**GIVEN, "type": []}, "type"),
        ({**GIVEN, "type": [*GIVEN["type"], GIVEN["type"][0]]}, "same name"),
        (with_type(throughput=[[2, 1]]), "throughput of a10g has 1 rows"),
        (with_type(throughput=[[2, 1], [5, -2]]), "negative"),
        (with_type(throughput=[[0, 1], [5, 2]]), "no type holds the limits for prompts of 1-100 and answers of 1-50"),
        (with_type(cap=3), r"raise the cap of a10g to 1\d"),
        (with_type(memory_gb=24.0), "a data sheet has"),
        (with_type(prise=3), "type.0.prise"),
        (with_type(throughput=None, memory_gb=24, bandwidth_gb_s=300, tflops=121), r"\[slo\]"),
    ],
)
def test_bad_problems_are_refused_by_name(problem: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        planned(problem)


def test_nearly_one_is_scaled_to_one() -> None:
    shares = [[0.2, 0.1], [0.5, 0.205]]
    plan = planned({**GIVEN, "buckets": {**GIVEN["buckets"], "shares": shares}})
    assert np.sum(plan["buckets"]["shares"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["plan", "int8", "p.toml"], "int8 makes no plans"),
        (["plan", "melange", "missing.toml"], "missing.toml"),
        (["plan", "melange", "broken.toml"], "not TOML"),
        (["plan", "melange", "p.toml", "--set", "slices=3"], "no setting 'slices'"),
        (["plan", "melange", "p.toml", "--set", "slice_factor=x"], "slice_factor"),
        (["plan", "melange", "p.toml", "-o", "none/plan.json"], "cannot write"),
        (["plan", "melange", "p.toml"], "lacks the key 'rate'"),
    ],
)
def test_the_verb_refuses_before_anything_runs(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.toml").write_text("")
    Path("broken.toml").write_text("rate = = 3")
    assert main(words) == 2
    told = capsys.readouterr()
    assert part in told.err and len(told.err.splitlines()) == 1 and not told.out
    assert sorted(path.name for path in Path().iterdir()) == ["broken.toml", "p.toml"]


def test_throughput_falls_with_size_and_with_a_tighter_limit() -> None:
    for _, sheet in SHEETS.values():
        table = np.array([[sheet.throughput(LLAMA2_7B, i, o, 0.12) for o in (25, 250, 2000)] for i in (25, 500, 4000)])
        assert (np.diff(table, axis=0) <= 0).all() and (np.diff(table, axis=1) <= 0).all()
        assert sheet.throughput(LLAMA2_7B, 500, 250, 0.04) <= table[1, 1]
        cost = sheet.iteration_time(LLAMA2_7B)
        tokens = sheet.kv_tokens(LLAMA2_7B)
        assert steady_throughput(cost, tokens, 1000, 250, SLO(tpot_s=0.12)) == pytest.approx(
            sheet.throughput(LLAMA2_7B, 1000, 250, 0.12), rel=0.05
        )


def test_edges_cover_a_trace_and_round_up() -> None:
    trace = Trace(np.zeros(3), np.array([1, 100, 900]), np.array([25, 26, 5000]))
    buckets = Buckets((25, 100, 250, 500), (25, 100)).covering(trace)
    assert buckets.in_edges[-1] == 900 and buckets.out_edges == (25, 100, 5000)
    shares = buckets.shares(trace)
    assert shares[0, 0] == shares[1, 1] == shares[4, 2] == pytest.approx(1 / 3) and shares.sum() == pytest.approx(1)


def test_a_growing_queue_is_not_sustained() -> None:
    trace = LoadRun().fixed(10, 5, 10.0)
    assert len(trace) == 600
    record = Outcome.begin(trace)
    record.generated[:] = 5
    record.ttft[:], record.finish[:], record.delay[:] = 0.2, 0.6, 0.1
    assert sustained(record, SLO(tpot_s=0.11)) and not sustained(record, SLO(tpot_s=0.09))
    record.delay[:] = np.arange(600.0)
    assert not sustained(record, SLO(tpot_s=0.11))
