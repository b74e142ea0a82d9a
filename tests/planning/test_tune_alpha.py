"""The planner of alpha: the best of the grid by replay, bad problems named, the command as documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headway.cli.main import main
from headway.core.errors import BadInput
from headway.core.system import PlanContext
from headway.planning.tune_alpha import AlphaProblem, TuneAlpha, fleet_of
from headway.serving import chess
from headway.serving.alpha_tuning import AlphaTuner, tune
from headway.serving.dispatch.base import RoundRobin
from headway.serving.dispatch.hexgen_text2sql import Hexgen, HexgenSettings
from headway.serving.fleet import simulate_fleet
from headway.serving.outcome import Totals
from headway.serving.workflow import Query, Workflows, quantile, write_queries

SMALL = [
    {"kind": "fast", "prefill_tokens_s": 8000, "decode_s": 0.02},
    {"kind": "slow", "prefill_tokens_s": 2000, "decode_s": 0.05, "count": 2},
]
SHORT = HexgenSettings(alpha_grid=(0.0, 0.2, 1.0))


@pytest.fixture(scope="module")
def window() -> list[Query]:
    return chess.generate(20, 0.1, seed=3)


@pytest.fixture
def trace(window: list[Query], tmp_path: Path) -> Path:
    path = tmp_path / "window.jsonl"
    write_queries(path, window)
    return path


def planned(trace: Path, settings: HexgenSettings = SHORT, **problem: Any) -> dict[str, Any]:
    context = PlanContext(lambda model, recipe: pytest.fail("no model is needed"), folder=trace.parent)
    return TuneAlpha().plan({"trace": trace.name, **problem}, settings, context)


def test_the_plan_is_the_alpha_with_the_lowest_p95(trace: Path, window: list[Query]) -> None:
    plan = planned(trace, instance=SMALL)
    assert plan["met"] and plan["queries"] == 20 and plan["calls"] == sum(query.calls for query in window)
    assert plan["fleet"] == ["fast", "slow", "slow"]
    found = plan["p95_s"]
    assert set(found) == {"0", "0.2", "1"} and found[f"{plan['alpha']:g}"] == min(found.values())
    assert found["1"] > found["0"]  # everything on one machine
    again = planned(trace, instance=SMALL)
    assert {**again, "seconds": 0} == {**plan, "seconds": 0}
    assert "alpha 0.2: 95 % of the queries" in TuneAlpha().table(plan)


def test_of_equal_alphas_the_smallest_is_taken() -> None:
    query = chess.generate(1, 1.0)
    assert tune(query, (0.5, 0.1, 0.3), lambda queries, alpha: 1.0)[0] == 0.1
    assert tune(query, (0.5, 0.1), lambda queries, alpha: -alpha)[0] == 0.5
    with pytest.raises(BadInput, match="without a query"):
        tune([], (0.1,), lambda queries, alpha: 1.0)


def test_calls_that_fit_nowhere_leave_the_plan_unmet_and_name_their_stage(trace: Path) -> None:
    plan = planned(trace, instance=[{**SMALL[0], "kv_tokens": 5000}])
    assert not plan["met"] and plan["p95_s"]["0"] is None
    assert plan["failed"] and all(why.startswith("stage candidate") for why in plan["failed"])
    assert "fails: stage candidate" in TuneAlpha().table(plan)


@pytest.mark.parametrize(
    ("problem", "what"),
    [
        ({"instance": [{"kind": "unheard"}]}, "prefill_tokens_s and decode_s"),
        ({"instance": [{"kind": "x", "decode_s": 0.1}]}, "together"),
        ({"instance": []}, "instance"),
        ({"instance": [{**SMALL[0]}, {**SMALL[0], "decode_s": 1.0}]}, "differ"),
        ({"scheduler": "int8"}, "no scheduler"),
        ({"scheduler": "nexus"}, "several lanes"),  # on a device of one, its lanes would be two machines
        ({"scheduler": "unheard"}, "no system"),
        ({"template": ["unheard"]}, "no time is known for stage 'unheard'"),
        ({"speed": 1}, "no key 'speed'"),
    ],
)
def test_bad_problems_are_named(problem: dict[str, Any], what: str, trace: Path) -> None:
    with pytest.raises(BadInput, match=what):
        planned(trace, **problem)


def test_alpha_outside_its_bounds_is_refused(trace: Path) -> None:
    for values in ({"alpha": 1.5}, {"alpha_grid": [0.1, -0.1]}, {"slo_s": 0.0}, {"alpha_grid": []}):
        with pytest.raises(BadInput):
            HexgenSettings.parse(values, "hexgen-text2sql")
    with pytest.raises(BadInput, match="alpha=2"):
        Hexgen(fleet_of(AlphaProblem(trace="x"), chess.generate(2, 1.0), SHORT).times, 2.0)
    with pytest.raises(BadInput, match="nothing is left to tune"):
        planned(trace, HexgenSettings(alpha=0.3))


def test_the_command_plans_from_a_trace_alone(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "plan.json"
    grid = ["--set", "alpha_grid=[0, 0.3]"]
    assert main(["plan", "tune-alpha", "--trace", str(trace), "-o", str(made), *grid, "--json"]) == 0
    assert json.loads(made.read_text())["system"] == "tune-alpha"
    assert json.loads(capsys.readouterr().out)["alpha"] in (0, 0.3)
    assert main(["plan", "tune-alpha"]) == 2
    assert "no problem" in capsys.readouterr().err
    assert main(["plan", "tune-alpha", "--trace", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert main(["plan", "serving", "--trace", str(trace)]) == 2
    assert main(["plan", "hexgen-text2sql", "--trace", str(trace)]) == 2
    assert "makes no plans" in capsys.readouterr().err


# The tuner of a running fleet


def test_a_running_fleet_is_tuned_on_what_has_ended(window: list[Query]) -> None:
    asked = AlphaProblem.model_validate({"trace": "x", "instance": SMALL})
    fleet = fleet_of(asked, window, SHORT)
    seen: list[tuple[float, ...]] = []

    def p95(queries: Any, alpha: float) -> float:
        seen.append(tuple(query.calls for query in queries))
        return fleet.p95(queries, alpha)

    tuner = AlphaTuner(HexgenSettings(alpha_grid=(0.0, 0.2), window_s=60.0), p95)
    work = Workflows.of(window, fleet.deadlines, 256, tuner.finished)
    simulate_fleet(fleet.machines, work, Hexgen(fleet.times, tuner), Totals())
    assert len(tuner.tuned) >= 2 and len(seen) == 2 * len(tuner.tuned)
    for (when, alpha), queries in zip(tuner.tuned, seen[::2], strict=True):
        ended = [
            run.record().calls for run in work.runs if run.finished is not None and when - 60 <= run.finished <= when
        ]
        assert sorted(queries) == sorted(ended) and alpha in (0.0, 0.2)


def test_a_fall_of_the_rate_tunes_before_the_window_is_over(window: list[Query]) -> None:
    class Ended:
        failed = ""

        def record(self) -> Query:
            return window[0]

    def fed(until: float) -> list[tuple[float, float]]:
        tuner = AlphaTuner(HexgenSettings(window_s=100.0), lambda queries, alpha: alpha)
        now = 0.0
        while now < 190.0:
            now += 1.0
            if now <= until:
                tuner.finished(Ended(), now)  # type: ignore[arg-type]
            tuner(now)
        return tuner.tuned

    assert len(fed(until=190.0)) == 1
    assert len(fed(until=120.0)) > 1


def test_tuned_dispatch_and_queues_beat_round_robin(window: list[Query]) -> None:
    fleet = fleet_of(AlphaProblem(trace="x"), window, HexgenSettings())
    ours = fleet.p95(window, 0.2)
    theirs = quantile(fleet.run(window, RoundRobin(), by_urgency=False)[0])
    assert ours < theirs
