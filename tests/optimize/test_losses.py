"""Predicted losses are computed once for a model, its calibration and whatever made the weights."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headway.core.budget import Budget
from headway.core.cache import StepCache
from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.core.registry import BrokenPlugIn, Entry, entry
from headway.core.system import Context
from headway.llm.weights.dense import DenseWeight
from headway.optimize import api, applying, losses
from headway.optimize.losses import Moments, by_need, calibrate_in, choice_table
from headway.optimize.pipeline import share_left


def test_losses_are_kept_by_maker_and_infinite_ones_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 4)).eval()
    sample = torch.randn(2, 8)
    model = ModuleModel(net, sample, name="two")
    target: Any = None
    context = Context(target, [(sample,)], StepCache(tmp_path))
    first, second = (site.name for site in model.sites())
    made = {name: DenseWeight(np.ones(model.weight(name).shape, np.float32)) for name in (first, second)}
    asked: list[str] = []

    def loss(self: Moments, site: Any, value: Any) -> float:
        asked.append(site.name)
        return 0.5 if site.name == first else float("inf")

    monkeypatch.setattr(Moments, "loss", loss)
    for _ in range(2):
        assert Moments(model, context).losses(made, "int4", 1, {"group_size": 64}) == {first: 0.5}
    assert asked == [first, second]
    Moments(model, context).losses(made, "int4", 1, {"group_size": 32})
    Moments(model, Context(target, [(sample + 1,)], StepCache(tmp_path))).losses(made, "int4", 1, {"group_size": 64})
    assert asked == [first, second] * 3


@pytest.mark.parametrize(("until", "expected"), [(math.inf, ["int8", "int4", "int4"]), (-math.inf, ["int8"])])
def test_what_is_made_in_no_time_comes_first_and_what_was_not_tried_is_told(
    until: float, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = torch.randn(2, 64)
    net = torch.nn.Sequential(torch.nn.Linear(64, 8)).eval()
    subject: Any = SimpleNamespace(model=ModuleModel(net, sample, name="one"), site_seconds=lambda *_: 1.0)
    target: Any = None
    context = Context(target, [(sample,)], StepCache(tmp_path), threads=1)
    monkeypatch.setattr(losses, "calibrated", lambda target, *_: target)
    offers = [
        (slug, entry(slug).load(), options) for slug, options in (("int4", [{}, {"group_size": 64}]), ("int8", [{}]))
    ]
    table = choice_table(subject, context, offers, until)  # type: ignore[arg-type]
    assert [choice.system for choice in table.choices[1:]] == expected
    told = "the time was up when 2 of 3 settings of the weight systems had not been tried"
    assert [note.partition(";")[0] for note in context.notes] == ([] if until > 0 else [told])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, ["4.5", "4.25", "4.25c", "4", "3.5", "8", "5"]),  # nothing is asked: what loses least
        (0.85, ["4.25", "4.5", "4.25c", "4", "3.5", "8", "5"]),
        (0.8, ["4", "4.25", "3.5", "4.25c", "4.5", "8", "5"]),
        (0.1, ["3.5", "4", "4.25", "4.25c", "4.5", "8", "5"]),  # out of reach: what saves most
    ],
)
def test_what_the_budget_needs_is_made_first(share: float, expected: list[str]) -> None:
    """Bits beside 5 that are held; `c`: with calibration."""
    names = ["8", "5", "4.25c", "3.5", "4.5", "4.25", "4"]
    options = [(name, float(name.rstrip("c")) / 5, name.endswith("c")) for name in names]
    assert by_need(options, share) == expected


def test_the_tightest_limit_says_what_share_is_left() -> None:
    measured = {"size_bytes": 100e6, "tpot_s": 0.01, "quality": 0.99, "kl": 0.01}
    assert share_left(Budget.parse("size<=80MB, latency<=6ms/token, quality>=0.5, kl<=0.001"), measured) == 0.6
    assert share_left(Budget.parse("size<=80MB, latency<=60ms/token, memory<=1MB"), measured) == 0.8
    assert share_left(Budget(), measured) == share_left(Budget.parse("size<=1GB"), measured) == 1.0


@pytest.mark.parametrize(("seconds", "count"), [(100.0, 6), (24.0, 6), (23.0, 4), (16.0, 4), (15.0, 2), (0.0, 2)])
def test_calibration_leaves_out_what_the_time_does_not_suffice_for(
    seconds: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "seconds_of_input", lambda *_: 2.0)
    target: Any = None
    context = Context(target, [(torch.full((1,), at),) for at in range(6)])
    calibrate_in(seconds, ModuleModel(torch.nn.Linear(1, 1), torch.zeros(1), name="one"), context)
    assert [int(given[0]) for given in context.calibration] == list(range(count))
    assert bool(context.notes) == (count < 6)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A plug-in whose modules raise when they are imported."""
    for name in ("broken_plug_in", "broken_plug_in_proof"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(str(tmp_path))
    card = Card("broken", "t", "p", "transform", "weights", "s", "c")
    return Entry(card, "broken_plug_in", plug_in=True)


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_plug_in_that_cannot_be_imported_is_left_out_of_the_search(
    broken: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "systems", lambda: {"broken": broken})
    request: Any = SimpleNamespace(recipe=Recipe(), without=(), only=())
    subject: Any = SimpleNamespace(model=SimpleNamespace(name="m"))
    context: Any = SimpleNamespace(progress=Notes(), target=None)
    with pytest.raises(BadInput, match="no system applies"):
        losses.make_space(subject, context, request)
    assert context.progress.said == [
        "left out: plug-in 'broken' (broken_plug_in): RuntimeError: two lines; mend or uninstall it"
    ]


def test_what_a_plug_in_raises_when_it_is_asked_is_its_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("inside")

    card = Card("raising", "t", "p", "transform", "weights", "s", "c")
    found = Entry(card, "raising_plug_in", plug_in=True)
    held: Any = SimpleNamespace(card=card, applies=fail)
    monkeypatch.setattr(Entry, "load", lambda self: held)
    monkeypatch.setattr(losses, "systems", lambda: {"raising": found})
    request: Any = SimpleNamespace(recipe=Recipe(), without=(), only=())
    subject: Any = SimpleNamespace(model=SimpleNamespace(name="m"))
    context: Any = SimpleNamespace(progress=Notes(), target=None)
    with pytest.raises(BadInput, match="no system applies"):
        losses.make_space(subject, context, request)
    assert len(context.progress.said) == 1 and "ZeroDivisionError: inside" in context.progress.said[0]
    monkeypatch.setattr(applying, "entry", lambda _: found)
    monkeypatch.setattr(applying, "prepared", lambda _: [(held, None)])
    with pytest.raises(BrokenPlugIn, match="ZeroDivisionError: inside"):
        applying.check(Recipe(), subject.model, None)


@pytest.mark.usefixtures("home")
def test_a_plug_in_that_cannot_be_imported_is_left_out_of_all_proofs(
    broken: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "systems", lambda: {"broken": broken})
    monkeypatch.setattr(api, "machine", lambda _: None)
    progress = Notes()
    assert api.prove(progress=progress) == []
    assert len(progress.said) == 1 and "RuntimeError: two lines" in progress.said[0]
    monkeypatch.setattr(api, "entry", lambda _: broken)
    with pytest.raises(BrokenPlugIn, match="two lines"):
        api.prove("broken")
