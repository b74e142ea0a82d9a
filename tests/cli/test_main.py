"""The command line: exit codes, one-line errors, and an answer at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headway.cli.main import VERBS, main


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["optimise"], "did you mean optimize"),
        (["zzz"], "verbs are"),
        (["systems", "lutgemm"], "did you mean"),
        (["systems", "--nope"], "no such option"),
        (["optimize"], "model"),
        (["optimize", "no-such-model"], "neither a packaged name nor a path"),
        (["optimize", "smollm2-135m", "--budget", "latency<6"], "unit"),
        (["optimize", "smollm2-135m", "--recipe", "lut-gemm(bits=9)", "--dry-run"], "bits"),
        (["apply", "lut-gem", "smollm2-135m", "-o", "out"], "did you mean lut-gemm"),
        (["generate", "smollm2-135m", "-p", "a", "--max-tokens", "0"], "max-tokens"),
        (["prove"], "name systems"),
        (["report"], "no evidence named"),
        (["generate", "smollm2-135m", "--device", "tpu", "-p", "a"], "cpu"),
    ],
)
def test_bad_input_is_one_line_with_a_mend_and_exit_2(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("headway: ")
    assert part in lines[-1]
    assert "; " in lines[-1]
    assert captured.out == ""


def test_help_and_listing_import_nothing_heavy() -> None:
    code = (
        "import sys; from headway.cli.main import main;"
        "assert main(['--help']) == 0; assert main(['systems']) == 0;"
        "print([m for m in ('torch', 'numpy', 'scipy', 'optuna', 'tokenizers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "[]"


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert "Usage: headway " + verb in capsys.readouterr().out


def test_systems_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert "lut-gemm" in {system["slug"] for system in document["systems"]}
    assert main(["systems", "--models", "--json"]) == 0
    assert "smollm2-135m" in {model["name"] for model in json.loads(capsys.readouterr().out)["models"]}
    assert main(["systems", "lut-gemm", "--json"]) == 0
    assert {setting["name"] for setting in json.loads(capsys.readouterr().out)["settings"]} >= {"bits", "group_size"}


def test_probe_answers_in_json_and_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    assert main(["probe", "--quick", "--json", "-o", str(tmp_path / "target.json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"memory", "compute", "dispatch_s", "ram_bytes", "isa", "gpu", "target", "schema"} <= set(document)
    assert json.loads((tmp_path / "target.json").read_text())["fingerprint"] == document["fingerprint"]
    assert main(["probe", "--quick"]) == 0
    assert "DRAM" in capsys.readouterr().out
