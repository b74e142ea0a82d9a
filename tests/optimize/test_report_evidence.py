"""A report is made of evidence as the verbs write it, by hand or from files and the ledger."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from headway.cli.main import main
from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger
from headway.core.measure import AGAIN, Timing
from headway.core.model import Site
from headway.core.recipe import Recipe
from headway.core.target import ComputeRate, MemoryLevel, Target
from headway.optimize.report import site_bits, write_report
from headway.optimize.report.metrics import metric
from headway.optimize.report.reading import run_of, short
from headway.optimize.report.words import headline, ratio_words, verdict

TARGET = Target(
    "bench-machine",
    "f" * 64,
    (MemoryLevel("L1", 32768, 2e11, 1e11, 1e-9), MemoryLevel("DRAM", 24 << 30, 1.89e10, 1.2e10, 9e-8)),
    (ComputeRate("f32", "fma512", 1e11, 5e10), ComputeRate("f32", "fma256", 6e10, 3e10)),
    dispatch_s=4e-6,
    crossing_s=2e-7,
    ram_bytes=24 << 30,
    available_bytes=20 << 30,
    cores=2,
    isa=("avx2", "avx512"),
)


def candidate(recipe: str, tpot_s: float, size: float, quality: float, predicted: bool = True) -> dict[str, Any]:
    measured = {"tpot_s": tpot_s, "size_bytes": size, "quality": quality, "quality_low": quality - 0.01}
    guess = {"tpot_s": tpot_s * 1.1, "size_bytes": size, "quality": quality} if predicted else {}
    return {
        "recipe": Recipe.parse(recipe).as_json(),
        "measured": measured,
        "predicted": guess,
        "notes": [f"of {recipe}"],
    }


def optimized(met: bool = True) -> Evidence:
    chance = random.Random(0)
    evidence = Evidence.begin("optimize", "smollm2-135m", TARGET, seed=7, threads=2)
    arms = {
        "baseline": [0.018 * chance.uniform(0.99, 1.01) for _ in range(20)],
        AGAIN: [0.018 * chance.uniform(0.99, 1.01) for _ in range(20)],
        "lut-gemm(bits=4)": [0.005 * chance.uniform(0.99, 1.01) for _ in range(20)],
    }
    evidence.add_timing("tpot_s", Timing("baseline", 7, arms, dict.fromkeys(arms, 1), [tuple(arms)] * 20))
    original = candidate("", 0.018, 538e6, 1.0)
    winner = candidate("lut-gemm(bits=4)", 0.005, 71e6, 0.985 if met else 0.9)
    evidence.model = {"name": "smollm2-135m", "fingerprint": "ab"}
    evidence.command = "headway optimize smollm2-135m --budget 'latency<=6ms/token, quality>=0.98'"
    evidence.quality = {"quality": 0.985, "quality_low": 0.981, "quality_high": 0.989, "kl": 0.012}
    evidence.result = {
        "met": met,
        "budget": "latency<=6ms/token, quality>=0.98",
        "minimize": "size",
        "baseline": original,
        "winner": winner,
        "front": [original, winner, candidate("lut-gemm(bits=3)", 0.004, 55e6, 0.8)],
        "candidates": [winner, candidate("int8", 0.009, 140e6, 0.97)],
        "artifact": "out/model here",
    }
    return evidence


def test_the_roles_of_candidates_follow_from_the_result() -> None:
    run = run_of(optimized(), "r1", TARGET)
    assert [(one.role, one.recipe) for one in run.candidates] == [
        ("baseline", "(unmodified)"),
        ("winner", "lut-gemm(bits=4)"),
        ("front", "lut-gemm(bits=3)"),
        ("measured", "int8"),
    ]
    assert len({one.id for one in run.candidates}) == 4
    assert "quality_low" not in run.candidates[0].measured


def test_limits_are_on_what_was_measured() -> None:
    latency, quality = run_of(optimized(met=False), "r1").limits
    assert (latency.metric, latency.limit, latency.here, latency.met) == ("tpot_s", 0.006, 0.005, True)
    assert (quality.metric, quality.here, quality.met) == ("quality", 0.9, False)
    assert run_of(optimized(), "r1").objective == "size_bytes"


def test_limits_on_a_quality_of_the_users_are_shown_and_missed() -> None:
    evidence = optimized(met=False)
    evidence.result["budget"] = "quality>=500"  # no share: whatever the user's function gives
    run = run_of(evidence, "r1")
    assert [(limit.metric, limit.limit, limit.met) for limit in run.limits] == [("quality", 500.0, False)]
    assert headline(run) == "Budget not met"
    evidence.result["budget"] = "of another version"
    run = run_of(evidence, "r1")
    assert run.limits == () and headline(run) == "Budget not met"


def test_samples_keep_their_order_and_the_second_run_of_the_baseline_is_named() -> None:
    evidence = optimized()
    run = run_of(evidence, "r1")
    assert [(one.arm, one.role) for one in run.samples] == [
        ("original", "baseline"),
        ("original again", "again"),
        ("winner", "candidate"),
    ]
    assert run.samples[2].values == evidence.series[2].values
    assert run.ratios[0].floor == evidence.ratios[0].noise_floor
    assert run.ratios[0].verdict == "faster"
    assert (run.ratios[0].candidate, run.ratios[0].baseline) == ("winner", "original")


def test_the_originals_times_are_those_of_the_run_that_proved_the_winner() -> None:
    evidence = optimized()
    evidence.result["baseline"]["measured"]["tpot_s"] = 0.5  # another moment, another load
    evidence.result["baseline"]["measured"]["throughput_tok_s"] = 2.0
    run = run_of(evidence, "r1")
    original = run.find("baseline")
    assert original is not None
    assert original.measured["tpot_s"] == median(evidence.series[0].values)
    assert original.measured["throughput_tok_s"] == 1 / original.measured["tpot_s"]
    assert original.measured["size_bytes"] == 538e6


def test_a_gain_inside_the_noise_is_not_called_one() -> None:
    evidence = optimized()
    evidence.ratios[0] = replace(evidence.ratios[0], value=0.98, low=0.97, high=0.99, verdict="none")
    assert "no difference beyond the noise" in verdict(run_of(evidence, "r1"))


def test_intervals_without_ends_survive_a_file(tmp_path: Path) -> None:
    evidence = optimized()
    evidence.ratios[0] = replace(evidence.ratios[0], low=0.0, high=math.inf, noise_floor=math.inf, verdict="none")
    evidence.save(tmp_path / "evidence.json")
    ratio = run_of(Evidence.load(tmp_path / "evidence.json"), "r1").ratios[0]
    assert (ratio.low, ratio.high, ratio.floor) == (0.0, math.inf, math.inf)
    assert ratio_words(ratio) == "too few pairs (20) to say"


def test_how_to_redo_it_is_quoted_for_a_shell() -> None:
    run = run_of(optimized(), "r1")
    assert run.command == optimized().command
    assert run.apply_command == "headway apply 'out/model here/recipe.toml' smollm2-135m -o again"
    evidence = optimized()
    evidence.model = {**evidence.model, "given": "models/tiny one.gguf"}
    again = "headway apply 'out/model here/recipe.toml' 'models/tiny one.gguf' -o again"
    assert run_of(evidence, "r1").apply_command == again
    assert Recipe.parse_toml(run.recipe_toml) == Recipe.parse("lut-gemm(bits=4)")


def test_a_winner_that_is_the_original_stays_beside_it() -> None:
    evidence = optimized()
    evidence.result["winner"] = evidence.result["baseline"]
    roles = [one.role for one in run_of(evidence, "r1").candidates]
    assert roles[:2] == ["baseline", "winner"]


def test_long_settings_are_shortened_and_short_ones_are_not() -> None:
    layers = [f"layers.{number}.mlp.up" for number in range(12)]
    recipe = Recipe.from_json([{"system": "lut-gemm", "settings": {"bits": 3, "only": layers}}])
    assert short(recipe) == 'lut-gemm(bits=3, only=["layers.0.mlp.up", "layers.1.mlp.up", … +10])'
    assert short(Recipe.parse('a(x=1.5, y=true, only="b") + c')) == 'a(x=1.5, y=true, only="b") + c'


def test_a_proof_is_judged_by_its_bars() -> None:
    evidence = Evidence.begin("prove", "some-system", TARGET, seed=0, threads=1)
    assert run_of(evidence, "r1").met is None
    evidence.bar("speed", "2.1x", ">= 1.2", "1.4", True)
    assert run_of(evidence, "r1").met is True
    evidence.bar("quality", "", "<= 1.3", "1.4", False)
    assert run_of(evidence, "r1").met is False


def test_sites_of_a_model_become_rows() -> None:
    @dataclass
    class Tiny:
        def sites(self) -> list[Site]:
            return [Site("layers.0.mlp.up", 8, 4)]

        def weight(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(form="int8", bits_per_weight=8.5, nbytes=34)

    evidence = optimized()
    evidence.result["sites"] = site_bits(Tiny())
    run = run_of(evidence, "r1")
    assert [(site.site, site.bits, site.parameters) for site in run.sites] == [("layers.0.mlp.up", 8.5, 32)]


def test_a_saved_report_holds_the_machine_and_the_evidence(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", [optimized()], targets={TARGET.fingerprint: TARGET})
    text = path.read_text(encoding="utf-8")
    for told in ("Budget met", "bench-machine", "18.9 GB/s", "100 G/s", "0.985"):
        assert told in text
    data = json.loads(text.partition('id="report-data">')[2].partition("</script>")[0])
    assert Evidence.from_json(data["evidence"][0]).series == optimized().series


def test_a_report_survives_evidence_with_an_unreadable_budget_and_strange_names(tmp_path: Path) -> None:
    evidence = optimized()
    evidence.result["budget"] = "lightness<=3"
    evidence.subject = "\ud800</script>"
    text = write_report(tmp_path / "report.html", [evidence], targets={}).read_text(encoding="utf-8")
    assert "\ufffd&lt;/script&gt;" in text


def test_no_evidence_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs evidence"):
        write_report(tmp_path / "report.html", [])
    assert list(tmp_path.iterdir()) == []


def test_the_verb_reads_files_folders_and_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    (tmp_path / "artifact").mkdir()
    optimized().save(tmp_path / "artifact" / "evidence.json")
    optimized(met=False).save(tmp_path / "other.json")
    Ledger.open().append(optimized())
    out = tmp_path / "all.html"
    words = ["report", str(tmp_path / "artifact"), str(tmp_path / "other.json"), "--ledger", "-o", str(out), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["evidence"] == 3
    assert "2 of 3 hold" in out.read_text(encoding="utf-8")


def test_making_a_report_imports_no_torch(tmp_path: Path) -> None:
    optimized().save(tmp_path / "evidence.json")
    code = (
        "import sys; from headway.cli.main import main; "
        f"assert main(['report', {str(tmp_path / 'evidence.json')!r}, '-o', {str(tmp_path / 'r.html')!r}]) == 0; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_the_engines_of_a_bench_are_its_candidates() -> None:
    def row(engine: str, batch: int, speed: float, size: float, quality: float) -> dict[str, Any]:
        shared = {"engine": engine, "batch": batch, "decode_tok_s": speed, "prefill_tok_s": 9.0 * speed}
        return {**shared, "size_bytes": size, "quality": quality, "kl": 1 - quality}

    evidence = Evidence("bench", "tiny", {"name": "here"}, 0, 1)
    evidence.result = {
        "engines": [
            row("headway", 1, 500.0, 96e6, 0.99),
            row("other", 1, 200.0, 96e6, 0.98),
            row("other:small", 1, 250.0, 60e6, 0.8),
            row("headway", 8, 2000.0, 96e6, 0.99),
        ]
    }
    run = run_of(evidence, "r0")
    assert [(one.recipe, one.role) for one in run.candidates] == [
        ("headway", "front"),
        ("other", "measured"),
        ("other:small", "front"),
    ]
    assert run.candidates[0].measured["tpot_s"] == pytest.approx(0.002)
    assert run.candidates[0].measured["batch_8_tok_s"] == 2000.0
    assert metric("batch_8_tok_s").label == "Batch 8, tokens/s"
    assert not metric("prefill_tok_s").lower_is_better
