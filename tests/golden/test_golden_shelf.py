"""What every released version wrote is read by this one, and gives what it gave then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headway
from headway.core.artifact import read_manifest
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger
from headway.core.recipe import Recipe
from headway.core.target import Target

SHELVES = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))
TOLERANCE = 2e-3
"""Of the largest logit: instruction sets order their float sums differently."""


def test_the_shelf_is_not_empty() -> None:
    assert SHELVES


@pytest.fixture(params=SHELVES, ids=lambda path: path.name)
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, so that nothing read here can be changed by the reading."""
    return Path(shutil.copytree(request.param, tmp_path / "shelf"))


@pytest.fixture
def expected(shelf: Path) -> Any:
    return json.loads((shelf / "expected.json").read_text())


def test_artifacts_load_and_give_their_logits(shelf: Path, expected: Any) -> None:
    for name, then in expected["artifacts"].items():
        manifest = read_manifest(shelf / name)
        assert manifest.fingerprint == then["fingerprint"]
        logits = headway.load(shelf / name).logits(expected["tokens"])[-1]
        wanted = np.asarray(then["logits"], dtype=np.float32)
        assert np.abs(logits - wanted).max() <= TOLERANCE * np.abs(wanted).max(), name


def test_recipes_read_as_they_did(shelf: Path, expected: Any) -> None:
    for name, steps in expected["recipes"].items():
        assert json.loads(json.dumps(Recipe.read(shelf / f"{name}.toml").as_json())) == steps
        assert json.loads(json.dumps(Recipe.read(shelf / name).as_json())) == steps


def test_evidence_and_ledger_hold_what_they_held(shelf: Path, expected: Any) -> None:
    then = expected["evidence"]
    for found in (Evidence.load(shelf / "evidence.json"), *Ledger(shelf / "ledger.sqlite3").all()):
        now = json.loads(json.dumps(found.to_json()))
        assert {key: now[key] for key in then if key != "schema"} == {k: v for k, v in then.items() if k != "schema"}
        assert found.table()
    Ledger(shelf / "ledger.sqlite3").check()


def test_the_target_is_the_same_machine(shelf: Path, expected: Any) -> None:
    assert Target.load(shelf / "target.json").fingerprint == expected["target"]
