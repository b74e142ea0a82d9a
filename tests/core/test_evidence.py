"""Evidence and the ledger: nothing is lost on the way to JSON, SQLite and back, whoever else is writing."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.core.evidence import Bar, Evidence, Ratio, Series
from headway.core.ledger import Ledger

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=8)
EVIDENCE = st.builds(
    Evidence,
    st.sampled_from(["optimize", "prove"]),
    TEXTS,
    st.fixed_dictionaries({"name": TEXTS, "fingerprint": TEXTS}),
    st.integers(0, 2**32),
    st.integers(1, 64),
    series=st.lists(st.builds(Series, TEXTS, TEXTS, TEXTS, st.lists(NUMBERS, max_size=3).map(tuple)), max_size=2),
    ratios=st.lists(
        st.builds(Ratio, TEXTS, TEXTS, TEXTS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 9), st.none() | NUMBERS, TEXTS),
        max_size=2,
    ),
    bars=st.lists(st.builds(Bar, TEXTS, TEXTS, TEXTS, TEXTS, st.booleans()), max_size=2),
    quality=st.dictionaries(TEXTS, NUMBERS, max_size=2),
    notes=st.lists(TEXTS, max_size=2),
)


def make(subject: str = "lut-gemm", seed: int = 0) -> Evidence:
    return Evidence("prove", subject, {"name": "here", "fingerprint": "f"}, seed, 2)


@given(EVIDENCE)
def test_json_gives_the_evidence_back(evidence: Evidence) -> None:
    text = json.dumps(evidence.to_json())
    assert dataclasses.asdict(Evidence.from_json(json.loads(text))) == dataclasses.asdict(evidence)


@pytest.mark.parametrize(
    "change",
    [{"schema": 99}, {"schema": "1"}, {"unknown": 1}, {"series": [{"arm": 3}]}, {"series": 4}, {"ratios": [[]]}],
)
def test_a_bad_document_is_refused_with_a_mend(change: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        Evidence.from_json({**make().to_json(), **change})
    assert caught.value.mend


def test_the_noise_floor_stands_beside_every_ratio() -> None:
    evidence = make()
    evidence.ratios.append(Ratio("tpot_s", "b", "a", 0.9, 0.88, 0.92, 40, 0.013, "faster"))
    evidence.ratios.append(Ratio("tpot_s", "c", "a", 0.9, 0.88, 0.92, 40, None, "faster"))
    assert "noise floor ±1.3%" in evidence.table()
    assert "noise floor not measured" in evidence.table()


def test_evidence_is_met_when_every_bar_is() -> None:
    evidence = make()
    evidence.bar("one", "2x", "<= 1", "0.5", True)
    assert evidence.met
    evidence.bar("two", "2x", "<= 1", "1.5", False)
    assert not evidence.met
    assert "MISSED two" in evidence.table()


def test_the_ledger_keeps_and_finds(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    first, second, other = make(seed=1), make(seed=2), make("other")
    for evidence in (first, second, other, first):
        ledger.append(evidence)
    assert [found.seed for found in ledger.all("lut-gemm")] == [1, 2]
    found = Ledger(tmp_path / "ledger.sqlite3").latest("lut-gemm")
    assert found is not None
    assert found.to_json() == second.to_json()
    assert ledger.latest("lut-gemm", target="elsewhere") is None
    ledger.check()


def test_a_newer_or_foreign_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    Ledger(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(BadInput, match="newer"):
        Ledger(path)
    (tmp_path / "text").write_text("this is no database at all, but long enough to be read as one" * 20)
    with pytest.raises(BadInput, match="no ledger"):
        Ledger(tmp_path / "text")


def _append_many(path: str, start: int) -> None:
    for seed in range(start, start + 25):
        Ledger(Path(path)).append(make(seed=seed))


def test_several_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(str(path), 100 * number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    ledger = Ledger(path)
    assert sorted(found.seed for found in ledger.all()) == sorted(100 * n + i for n in range(3) for i in range(25))
    ledger.check()
