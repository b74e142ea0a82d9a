"""`bench` and `apply` on a tiny model: every engine timed in one run, every sample kept, artifacts that load."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import TinyFolder

import headway
from headway.cli.main import main
from headway.core.errors import BadInput
from headway.core.ledger import Ledger
from headway.optimize.api import machine
from headway.optimize.bench import Load, bench
from headway.optimize.engines.transformers_eager import make as transformers_engines


@pytest.fixture
def tiny(tmp_path: Path, home: Path) -> Path:
    return TinyFolder(tmp_path / "tiny").path


def test_engines_are_timed_in_one_run(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", str(tiny), "--against", "torch", "--prefill", "16", "--decode", "8", "--context", "8"]
    words += ["--batch", "1,2", "--json", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["headway", *words])
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["evidence"]["command"] == shlex.join(["headway", *words])
    rows = document["engines"]
    assert [(row["engine"], row["batch"]) for row in rows] == [
        ("headway", 1),
        ("torch", 1),
        ("headway", 2),
        ("torch", 2),
    ]
    assert all(row["decode_tok_s"] > 0 and row["prefill_tok_s"] > 0 and row["samples"] for row in rows)
    assert {series["arm"] for series in document["evidence"]["series"]} == {"headway", "again", "torch", "plain read"}
    assert ["read_share" in row for row in rows] == [True, False, False, False]
    assert Ledger.open().all("tiny", "bench") or Ledger.open().all(experiment="bench")
    exact = {row["engine"]: row["quality"] for row in rows}
    assert exact["torch"] == pytest.approx(1.0, abs=1e-4) and 0.9 < exact["headway"] < 1.1


def test_people_read_the_share_of_a_plain_read_without_a_verdict(tiny: Path) -> None:
    load = Load(prefill=8, decode=8, context=8, windows=0)
    result = bench(headway.load(tiny), load=load, target=machine(), rounds=6)
    share = result.rows[0]["read_share"]
    assert f"\nheadway reads its weights at {100 * share:.0f} % of a plain read\n" in result.table()
    assert "plain read /" not in result.table()
    assert "plain read" in [ratio["candidate"] for ratio in result.as_json()["evidence"]["ratios"]]


def test_engines_decode_the_same_tokens(tiny: Path) -> None:
    model = headway.load(str(tiny)).with_runtime("exact")
    tokens = np.array([1, 5, 9, 2])
    torch_model = model.with_runtime("torch")
    assert np.allclose(model.logits(tokens), torch_model.logits(tokens), rtol=1e-4, atol=1e-4)


def test_transformers_predicts_what_the_exact_network_does(tiny: Path) -> None:
    model = headway.load(str(tiny)).with_runtime("exact")
    (engine,) = transformers_engines(model, "", threads=1)
    part = np.random.default_rng(0).integers(0, model.architecture.vocab, 24)
    (found,) = [logits for _, logits in engine.predictions(part)]
    assert np.allclose(found, model.logits(part)[:-1], rtol=1e-4, atol=1e-4)
    repeat = engine.decode(part, batch=2, depth=8)
    repeat()
    repeat()  # back at the same depth: the cache was cut


def test_recipes_beside_the_first_are_timed_and_scored(tiny: Path) -> None:
    model = headway.load(str(tiny))
    beside = {"headway:int8": headway.apply("int8", model, threads=1)}
    rows = bench(model, machine(), beside=beside, load=Load(prefill=16, context=8, windows=1), rounds=2).rows
    assert [row["engine"] for row in rows] == ["headway", "headway:int8"]
    assert rows[1]["size_bytes"] < rows[0]["size_bytes"] and rows[1]["kl"] > 0


def test_what_cannot_be_timed_is_refused(tiny: Path) -> None:
    model = headway.load(str(tiny))
    with pytest.raises(BadInput, match="no peer"):
        bench(model, machine(), against=["vllm"])
    with pytest.raises(BadInput, match="context"):
        bench(model, machine(), load=Load(prefill=10**6))
    small = Load(prefill=16, context=8)
    for peers, message in (
        (["torch:int3"], "variants are"),
        (["llama.cpp"], "reads GGUF files"),
        (["torch", "torch"], "named twice"),
    ):
        with pytest.raises(BadInput, match=message):
            bench(model, machine(), against=peers, load=small)


def test_a_recipe_is_applied_measured_and_saved(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["apply", "int4(quantizer=rtn)", str(tiny), "-o", str(tmp_path / "out"), "--threads", "1"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["winner"]["recipe"] == [{"system": "int4", "settings": {"quantizer": "rtn"}}]
    loaded = headway.load(str(tmp_path / "out"))
    again = headway.apply("int4(quantizer=rtn)", str(tiny), threads=1)
    assert np.array_equal(loaded.logits([1, 2, 3]), again.logits([1, 2, 3]))
    assert main(["report", str(tmp_path / "out"), "-o", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size > 100_000
