"""The search stands on a smaller network where the budget asks for one, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from slim_nets import model

import headway
from headway.core.module_origin import Origin
from headway.core.recipe import Recipe
from headway.optimize import pipeline
from headway.vision.compress import slimming


@pytest.fixture(autouse=True)
def shorter(short_search: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fewer in (("ROUNDS", 1), ("EXPLORED", 2), ("PROPOSED", 2), ("SURVIVORS", 1)):
        monkeypatch.setattr(pipeline, name, fewer)
    # Times of so small a network tell nothing, and a few steps teach it enough.
    options = tuple({"keep": keep, "cost": "macs", "steps": 24} for keep in (0.9, 0.6))
    monkeypatch.setattr(slimming.Slimming, "options", lambda *given: options)


def optimized(budget: str, **more: Any) -> Any:
    given = {"only": ("int8", "slimming"), "minimize": "size", "time_s": 600.0, "threads": 1, **more}
    return headway.optimize(model(origin=Origin("python", "slim_nets:built")), budget=budget, **given)


def systems_of(result: Any) -> list[set[str]]:
    return [{step.system for step in candidate.recipe.steps} for candidate in result.candidates]


def test_a_budget_that_weights_alone_miss_gets_a_smaller_network_with_their_weights(tmp_path: Path) -> None:
    whole = model()
    size = 0.8 * headway.apply("int8()", whole).size_bytes()
    result = optimized(f"size<={size / 1e3:.2f}kB, quality>=0.5", output=tmp_path / "out")
    assert result.met and size < 0.5 * whole.size_bytes()
    assert [step.system for step in result.winner.recipe.steps] == ["slimming", "int8"]
    assert any("slimming: " in note for note in result.evidence.notes)
    again = headway.load(tmp_path / "out", allow_code=True)
    assert again.fingerprint() == result.model.fingerprint()
    report = (tmp_path / "out.html").read_text()
    assert "slimming" in report
    assert Recipe.read(tmp_path / "out") == result.winner.recipe


def test_it_is_not_tried_where_the_budget_holds_without_or_the_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all("slimming" not in found for found in systems_of(optimized("quality>=0.9")))
    monkeypatch.setattr(slimming, "_seconds_of_image", lambda model: 1e3)
    late = optimized("size<=1kB, quality>=0.1")
    assert not late.met and all("slimming" not in found for found in systems_of(late))


def test_every_network_is_tried_once_where_each_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slimming.Slimming, "shares", lambda *given: {"size_bytes": 0.0})
    result = optimized("size<=1kB, quality>=0.01", only=("slimming",), time_s=60.0)
    tried = [dict(candidate.recipe.steps[0].settings)["keep"] for candidate in result.candidates[1:]]
    assert not result.met and tried == [0.9, 0.6]


def test_it_is_tried_alone_where_no_other_system_may_be() -> None:
    size = 0.8 * model().size_bytes()
    result = optimized(f"size<={size / 1e3:.2f}kB, quality>=0.1", only=("slimming",))
    assert result.met and systems_of(result)[-1] == {"slimming"}


def test_a_network_that_the_user_chose_is_under_every_candidate() -> None:
    fixed = 'slimming(keep=0.7, cost="macs", steps=0)'
    result = optimized("quality>=0.3", recipe=fixed)
    others = [candidate.recipe for candidate in result.candidates if candidate.recipe.steps]
    assert others and all(str(recipe.steps[0]) == fixed for recipe in others)
    assert any("int8" in found for found in systems_of(result))
