"""Evidence and the ledger: nothing is lost on the way to JSON, SQLite and back, whoever else is writing."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import multiprocessing
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadFile, BadInput, Lacking
from headway.core.evidence import Bar, Evidence, LoadRun, Ratio, Series, Timeline
from headway.core.ledger import _MIGRATIONS, Ledger
from headway.core.measure import AGAIN, Timing

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=8)
MANY = st.lists(NUMBERS, max_size=3).map(tuple)
COUNTS = st.integers(0, 2**40)
LOAD_RUNS = st.builds(
    LoadRun,
    st.sampled_from(["engine", "simulator"]),
    NUMBERS,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.none() | NUMBERS,
    MANY,
    MANY,
    st.builds(Timeline, MANY, MANY, MANY, MANY),
)
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
    load_runs=st.lists(LOAD_RUNS, max_size=2),
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
    [
        {"schema": 99},
        {"schema": "1"},
        {"unknown": 1},
        {"series": [{"arm": 3}]},
        {"series": 4},
        {"load_runs": [{"by": "guess"}]},
        {"ratios": [[]]},
        {"seed": "0"},
        {"bars": [{"name": 1}]},
    ],
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


def test_the_medians_behind_a_ratio_are_shown() -> None:
    evidence = make()
    evidence.series += [Series("tpot_s", "b", "s", (0.005, 0.004, 9.0)), Series("tpot_s", "a", "s", (0.006, 0.007))]
    evidence.ratios.append(Ratio("tpot_s", "b", "a", 0.9, 0.88, 0.92, 40, 0.013, "faster"))
    assert "[0.880, 0.920] (5 ms against 6.5 ms), 40 pairs" in evidence.table()


def test_an_interval_without_bounds_survives_as_unknown() -> None:
    evidence = make()
    evidence.ratios.append(Ratio("tpot_s", "b", "a", 0.9, 0.0, math.inf, 3, math.inf, "none"))
    again = Evidence.from_json(json.loads(json.dumps(evidence.to_json())))
    assert math.isnan(again.ratios[0].high) and again.ratios[0].noise_floor is None
    assert again.table() == evidence.table()
    assert "tpot_s: b / a = 0.900, 3 pairs: too few to say" in again.table()


def test_a_timing_of_one_pair_says_so_in_text_and_in_json() -> None:
    timing = Timing("a", 0, {"a": [3.0], "b": [1.5], AGAIN: [3.0]}, {}, [("a", "b", AGAIN)])
    evidence = make()
    evidence.add_timing("latency_s", timing)
    assert "b / a = 0.500 (1.5 s against 3 s), 1 pair: too few to say" in evidence.table()
    (ratio,) = json.loads(json.dumps(evidence.to_json()))["ratios"]
    assert (ratio["pairs"], ratio["verdict"], ratio["high"], ratio["noise_floor"]) == (1, "too few pairs", None, None)
    assert timing.comparison("b").text() == "b / a: time 0.500 (1 pair: too few to say)"


def test_a_file_comes_back_and_a_damaged_one_names_itself(tmp_path: Path) -> None:
    evidence = make()
    evidence.save(tmp_path / "e.json")
    assert Evidence.load(tmp_path / "e.json").id == evidence.id
    (tmp_path / "e.json").write_text("{")
    with pytest.raises(BadInput, match=r"e.json: byte 1"):
        Evidence.load(tmp_path / "e.json")


def test_a_timing_becomes_series_and_ratios_per_unit() -> None:
    timing = Timing("a", 0, {"a": [0.2] * 8, "b": [0.1] * 8, AGAIN: [0.2] * 8}, {}, [("a", "b", AGAIN)] * 8, {"x": 1})
    evidence = make()
    (ratio,) = evidence.add_timing("tpot_s", timing, per_call=10)
    assert (ratio.candidate, ratio.value, ratio.verdict, ratio.noise_floor) == ("b", pytest.approx(0.5), "faster", 0.0)
    assert {(series.arm, series.values[0]) for series in evidence.series} == {("a", 0.02), ("b", 0.01), (AGAIN, 0.02)}
    assert evidence.conditions == {"tpot_s": {"x": 1}}


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


class Capabilities(ctypes.Structure):
    """What `capget` and `capset` take: a header, then two sets of effective, permitted and inheritable bits."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int32), ("bits", ctypes.c_uint32 * 6)]

    def __init__(self) -> None:
        super().__init__(0x20080522, 0)
        self.call("capget")

    def call(self, name: str) -> None:
        here = ctypes.addressof(self)
        assert getattr(ctypes.CDLL(None), name)(ctypes.c_void_p(here), ctypes.c_void_p(here + 8)) == 0


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """Root too may write only what the modes of files allow; in a user namespace there is nobody else to become."""
    before, now = Capabilities(), Capabilities()
    now.bits[0] &= ~0b1110  # DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
    now.call("capset")
    try:
        yield
    finally:
        before.call("capset")


@pytest.fixture
def of_another_user() -> Iterator[Path]:
    """A home with one piece of evidence that this process may read and not write, whoever runs it."""
    with tempfile.TemporaryDirectory() as name:
        state = Path(name, "state")
        Ledger(state / "ledger.sqlite3").append(Evidence("prove", "lut-gemm", {"name": "m"}, 3, 1))
        for place, mode in ((state / "ledger.sqlite3", 0o444), (state, 0o555), (Path(name), 0o755)):
            place.chmod(mode)
        with bound_by_modes():
            yield Path(name)
        state.chmod(0o755)


def test_a_ledger_of_another_user_is_read_and_refused_for_writing_at_once(
    of_another_user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(of_another_user))
    held = Ledger.open_to_read()
    assert [found.seed for found in held.all()] == [3]
    assert held.latest("lut-gemm") is not None
    with pytest.raises(BadInput, match="set HEADWAY_HOME to one"):
        held.append(Evidence("prove", "lut-gemm", {"name": "m"}, 4, 1))
    with pytest.raises(BadInput, match="set HEADWAY_HOME to one"):
        Ledger.open()


def test_a_file_that_may_not_be_written_is_noticed_in_a_folder_that_may(of_another_user: Path) -> None:
    (of_another_user / "state").chmod(0o777)
    with pytest.raises(BadInput, match="set HEADWAY_HOME to one"):
        Ledger(of_another_user / "state" / "ledger.sqlite3")


def test_the_ledger_is_written_ahead(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite3").append(make())
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as opened:
        assert opened.execute("PRAGMA journal_mode").fetchone() == ("wal",)


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


def test_a_ledger_of_the_first_version_is_brought_to_this_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.executescript(_MIGRATIONS[0] + "; PRAGMA user_version = 1")
        row = ("id", "prove", "lut-gemm", "f", "2026", 1, json.dumps(make(seed=7).to_json()))
        connection.execute("INSERT INTO evidence VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    ledger = Ledger(path)
    ledger.append(make(seed=8))
    assert [found.seed for found in Ledger(path).all()] == [7, 8]


def test_evidence_changed_in_place_is_noticed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    ledger.append(make(seed=1))
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("UPDATE evidence SET document = replace(document, '\"seed\": 1', '\"seed\": 2')")
    connection.close()
    with pytest.raises(BadFile, match="changed after it was written"):
        ledger.all()


def test_everything_can_be_exported(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    for seed in range(3):
        ledger.append(make(seed=seed))
    assert ledger.export(tmp_path / "all.json") == 3
    exported = json.loads((tmp_path / "all.json").read_text())
    assert [Evidence.from_json(document).seed for document in exported] == [0, 1, 2]


def test_the_users_ledger_is_in_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    assert Ledger.open().path == tmp_path / "state" / "ledger.sqlite3"


def test_a_damaged_ledger_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(path)
    for seed in range(50):
        ledger.append(make(seed=seed))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(BadFile, match=r"move .* away"):
        Ledger(path).check()


def test_a_held_ledger_and_a_folder_without_rights_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.core.ledger.BUSY_S", 0.05)
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    holder = sqlite3.connect(ledger.path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Lacking, match="wait for the other headway"):
        ledger.append(make())
    holder.close()
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="HEADWAY_HOME"):
        Ledger(tmp_path / "folder")


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
