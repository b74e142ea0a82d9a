"""The serving planner: the choice with the highest rate, written so that a server can run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import headway
from headway.cli.main import main
from headway.core.errors import BadInput
from headway.core.files import atomic_write_json
from headway.core.model import Model
from headway.core.recipe import Recipe, Step
from headway.core.system import PlanContext
from headway.llm.language_model import LanguageModel
from headway.planning.serving import Choice, ServingPlanner, ServingSettings, Tried, best_of, choices
from headway.serving.server_plan import ServerPlan

PROBLEM: dict[str, Any] = {
    "model": "tiny",
    "rate": 2.0,
    "kv_gb": 0.01,
    "max_seqs": 16,
    "slo": {"tbt_ms": 60, "ttft_ms": 3000},
    "workload": [{"lengths": "azure-conv", "factor": 0.1, "most_prompt": 200, "most_output": 30}],
}
FEW = ServingSettings(requests=60, budgets=("auto", 8, 64), tolerance=0.1)


def context(tiny: LanguageModel) -> PlanContext:
    def load(name: str, recipe: str) -> Model:
        assert name == "tiny"
        return headway.apply(recipe, tiny, threads=1) if recipe else tiny

    return PlanContext(load, threads=1)


def planned(tiny: LanguageModel, settings: ServingSettings = FEW, **changed: Any) -> dict[str, Any]:
    return ServingPlanner().plan({**PROBLEM, **changed}, settings, context(tiny))


@pytest.mark.usefixtures("known_times")
def test_the_plan_is_the_choice_that_sustains_most(tiny: LanguageModel) -> None:
    plan = planned(tiny)
    rates = {each["choice"]: each["rate"] for each in plan["tried"]}
    assert len(rates) == 2 * 5
    assert rates[plan["recipe"]] >= max(rates.values()) / 1.05
    assert plan["predicted"]["rate"] == rates[plan["recipe"]] and plan["met"] and plan["predicted"]["holds"]
    assert "kv-int8" in plan["recipe"]  # its batches take 0.7 of the time
    assert plan["predicted"]["tbt_p99_s"] <= 0.06
    assert not planned(tiny, rate=1e4)["met"]
    assert planned(tiny, rate=None)["met"]
    assert "headway serve --plan" in ServingPlanner().table(plan)


@pytest.mark.usefixtures("known_times")
def test_a_server_reads_what_the_planner_wrote(tiny: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    atomic_write_json(path, {"schema": 1, "system": "serving", **planned(tiny, recipe="int8")})
    plan = ServerPlan.read(path)
    steps = Recipe.read(plan.recipe).steps
    assert plan.model == "tiny" and steps[0] == Step("int8")
    assert plan.slo.tbt_s == 0.06 and plan.limits.kv_bytes == 10_000_000 and plan.limits.max_seqs == 16
    served = headway.apply(plan.recipe, tiny, threads=1)
    assert isinstance(served, LanguageModel)
    assert served.scheduler == (steps[-1].system, dict(steps[-1].settings))


def test_of_equals_the_first_wins_and_noise_changes_nothing() -> None:
    tried = [Tried(Choice(kv, Step("sarathi-serve")), rate, None) for kv, rate in (("f16", 9.7), ("int8", 10.0))]
    assert best_of(tried, 0.05).choice.kv == "f16"
    assert best_of(tried, 0.01).choice.kv == "int8"


def test_every_budget_is_a_choice_of_the_scheduler_that_takes_one() -> None:
    found = [str(choice) for choice in choices(FEW)]
    assert found[:4] == [
        "sarathi-serve",
        "sarathi-serve(token_budget=8)",
        "sarathi-serve(token_budget=64)",
        "vllm-like",
    ]
    assert found[5] == "kv-int8 + sarathi-serve"
    asked = ServingSettings(schedulers=("orca-like",), kv=("f16", "k8v4", "int4"))
    assert [str(choice) for choice in choices(asked)] == [
        "orca-like",
        "kv-int4 + orca-like",
        "kv-int4(keys=4) + orca-like",
    ]


@pytest.mark.parametrize(
    ("settings", "changed", "words"),
    [
        ({"schedulers": ("nexus",)}, {}, "nexus runs several lanes"),
        ({"schedulers": ("int8",)}, {}, "int8 is no scheduler"),
        ({}, {"slo": {}}, "give ttft_ms, tpot_ms or tbt_ms"),
        ({}, {"workload": []}, "workload"),
        ({}, {"workload": [{"lengths": "azure"}]}, "no length table"),
        ({}, {"workload": [{"trace": "none.csv"}]}, "none.csv"),
        ({}, {"workload": [{"lengths": "azure-conv", "trace": "t.csv"}]}, "give one of"),
        ({}, {"workload": [{"lengths": "azure-conv"}]}, "exceeds the"),
        ({}, {"kv_gb": 1e-6}, "hold no page"),
        ({}, {"batch": 3}, "no key 'batch'"),
    ],
)
@pytest.mark.usefixtures("known_times")
def test_bad_problems_are_refused(settings: Any, changed: Any, words: str, tiny: LanguageModel) -> None:
    with pytest.raises(BadInput, match=words):
        planned(tiny, ServingSettings(**{**FEW.model_dump(), **settings}), **changed)


PLAN = {
    "schema": 1,
    "system": "serving",
    "model": "m",
    "recipe": "int8",
    "limits": {"threads": 1, "max_seqs": 4, "kv_bytes": 1000},
    "slo": {"ttft_s": 1.0, "tbt_s": None, "tpot_s": None, "quantile": 0.99},
}


@pytest.mark.parametrize(
    ("plan", "words", "told"),
    [
        ({**PLAN, "system": "melange"}, [], "a plan of 'melange'"),
        ({**PLAN, "schema": 9}, [], "newer"),
        ({key: value for key, value in PLAN.items() if key != "limits"}, [], "'limits' is missing"),
        ({**PLAN, "recipe": "int9"}, [], "int9"),
        (PLAN, ["m"], "--plan says what to serve"),
        (PLAN, ["--max-seqs", "3"], "--plan says what to serve"),
        (None, [], "plan.json"),
    ],
)
def test_serve_refuses_plans_it_cannot_run(
    plan: Any, words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    if plan is not None:
        path.write_text(json.dumps(plan))
    assert main(["serve", *words, "--plan", str(path)]) == 2
    assert told in capsys.readouterr().err


def test_serve_without_a_model_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 2
    assert "--plan FILE" in capsys.readouterr().err
