"""`bench --trace` on a tiny model: engine and simulator at each rate, kept and drawn; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import TinyFolder

from headway.cli.main import main
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger
from headway.hardware.iteration_time import IterationTime
from headway.serving import load_run, prepared

COST = IterationTime((0, 8, 64), (0.001, 0.001, 0.008), 1e-7, 1e-7, 1e-6, 1e-6)


@pytest.fixture
def tiny(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (load_run, prepared):
        monkeypatch.setattr(module, "iteration_time", lambda *_: COST)
    return TinyFolder(tmp_path / "tiny").path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    rows = "".join(f"{0.1 * at},{4 + at % 7},{1 + at % 3}\n" for at in range(30))
    file.write_text("arrived_s,context_tokens,generated_tokens\n" + rows)
    return file


def test_engine_and_simulator_run_the_same_trace_at_each_rate(
    tiny: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.html"
    words = ["bench", str(tiny), "--trace", str(trace), "--requests", "6", "--rates", "50,20", "--threads", "1"]
    assert main([*words, "--budget", "ttft<=60s, latency<=60s/token", "--json", "-o", str(report)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["met"] is True
    assert [(run["by"], run["rate"]) for run in document["runs"]] == [
        ("engine", 20),
        ("simulator", 20),
        ("engine", 50),
        ("simulator", 50),
    ]
    for run in document["runs"]:
        assert (run["finished"], run["rejected"], run["attainment"]) == (6, 0, 1.0)
        assert 0 < run["ttft_p50_s"] <= run["ttft_p99_s"] and run["output_tok_s"] > 0
    (kept,) = Ledger.open().all(experiment="bench")
    assert kept.to_json() == document["evidence"]
    assert Evidence.from_json(document["evidence"]).load_runs == kept.load_runs
    assert "Under load" in report.read_text()


def test_a_missed_slo_is_the_answer_no_and_the_scheduler_is_the_recipes(
    tiny: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(tiny), "--trace", str(trace), "--requests", "6", "--rates", "50", "--threads", "1"]
    assert main([*words, "--recipe", "vllm-like", "--budget", "ttft<=1ns", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["met"] is False and document["runs"][0]["attainment"] == 0.0
    assert document["evidence"]["result"]["scheduler"]["system"] == "vllm-like"


def test_rates_are_chosen_and_long_requests_scaled_where_nobody_says_otherwise(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(tiny), "--trace", "azure-conv", "--requests", "3", "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["met"] is None and len({run["rate"] for run in document["runs"]}) == 3
    chosen, scaled = document["notes"]
    assert "30, 60 and 90 %" in chosen and "azure-conv are scaled by" in scaled
    assert all(run["finished"] == 3 for run in document["runs"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trace", "azure-conv", "--against", "torch"], "--against does not go with --trace"),
        (["--trace", "azure-conv", "--batch", "1"], "--batch does not go with --trace"),
        (["--trace", "azure-conv", "--windows", "0"], "--windows does not go with --trace"),
        (["--rates", "1"], "name the load with --trace"),
        (["--budget", "ttft<=1s"], "name the load with --trace"),
        (["--trace", "azure"], "tables are: azure-conv"),
        (["--trace", "azure-conv", "--rates", "1,x"], "write e.g. 0.5,1,2"),
        (["--trace", "azure-conv", "--rates", "0"], "requests per second"),
        (["--trace", "azure-conv", "--rates", "nan"], "requests per second"),
        (["--trace", "azure-conv", "--requests", "1"], "2"),
        (["--trace", "azure-conv", "--budget", "size<=1MB"], "a server cannot hold size"),
        (["--trace", "azure-conv", "--recipe", "nexus"], "several lanes"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    assert main(["bench", str(tmp_path / "no-model"), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
