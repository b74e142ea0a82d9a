"""The main path on tiny models: met and missed budgets, the cache, interrupts, artifacts that load again."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import TinyFolder

import headway
from headway.cli.main import main
from headway.core.errors import BadInput
from headway.core.module_workload import workload_from
from headway.core.workload import Texts, Workload
from headway.optimize import api, footprint, search
from headway.optimize.api import machine
from headway.optimize.result import Result

WORDS = "the cat sat on a mat and saw the dog run to its house near a tree by the road "


PROCESS = footprint.peak_bytes
"""How a user's search measures memory."""

pytestmark = pytest.mark.usefixtures("short_search")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return TinyFolder(tmp_path / "tiny").path


def texts(seed: int = 0) -> Workload:
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    parts = [" ".join(rng.choice(words, 4000)) for _ in range(3)]
    return Workload(prompt_tokens=16, output_tokens=4, texts=Texts(*parts, "test"))


def run(model: Path, budget: str, **options: object) -> Result:
    given = {"workload": texts(), "minimize": "size", "time_s": 600.0, "threads": 1, **options}
    result: Result = headway.optimize(str(model), budget=budget, **given)
    return result


def test_a_budget_that_can_be_met_is_met_and_proven(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "TRIALS", 40)
    monkeypatch.setattr(footprint, "peak_bytes", PROCESS)
    original = headway.load(str(tiny))
    result = run(tiny, "quality>=0.8", output=tmp_path / "out")
    assert result.met
    assert result.winner.measured["quality"] >= 0.8
    assert result.winner.measured["size_bytes"] < original.size_bytes()
    assert result.model.size_bytes() == result.winner.measured["size_bytes"]
    again = headway.load(str(tmp_path / "out"))
    assert again.fingerprint() == result.model.fingerprint()
    assert np.array_equal(again.logits([1, 2, 3]), result.model.logits([1, 2, 3]))
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert {series["arm"] for series in evidence["series"]} >= {"baseline", "again"}
    assert evidence["result"]["met"] is True
    assert "<!doctype html>" in (tmp_path / "out.html").read_text()[:20].lower()
    with pytest.raises(BadInput, match="is no artifact"):
        result.save(tmp_path)
    with pytest.raises(BadInput, match="folder you are in"):
        result.save(".")


def test_scales_are_tuned_of_the_winner_alone_and_behind_its_weights(tiny: Path) -> None:
    result = run(tiny, "quality>=0.5", recipe="scale-tuning(steps=2)", only=["lut-gemm"])
    *weights, last = result.winner.recipe.steps
    assert last.system == "scale-tuning"
    assert {step.system for step in weights} == {"lut-gemm"}
    assert not any(step.system == "scale-tuning" for each in result.candidates for step in each.recipe.steps)
    assert any("scale-tuning" in note for note in result.evidence.notes)


def test_a_budget_that_cannot_be_met_says_by_how_much_and_shows_the_nearest(tiny: Path, tmp_path: Path) -> None:
    result = run(tiny, "size<=1KB, quality>=0.999", output=tmp_path / "out")
    assert not result.met
    document = result.as_json()
    assert document["missed"]
    assert document["missed"][0]["missed_by"] > 0
    assert document["front"]
    assert (tmp_path / "out" / "recipe.toml").is_file()


def test_a_second_run_measures_nothing_and_answers_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tiny, "quality>=0.9")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("headway.optimize.measuring.compare", never)
    monkeypatch.setattr("headway.optimize.footprint.peak_bytes", never)
    monkeypatch.setattr("headway.optimize.pipeline.make_space", never)
    second = run(tiny, "quality>=0.9")
    assert second.winner == first.winner
    assert [c.recipe for c in second.front] == [c.recipe for c in first.front]
    assert second.evidence.notes == first.evidence.notes
    with pytest.raises(AssertionError, match="measured again"):  # more time: the search goes on
        run(tiny, "quality>=0.9", time_s=500.0)
    for other in ({"seed": 1}, {"only": ["int8"]}, {"minimize": "memory"}):  # nor is another search this one
        with pytest.raises(AssertionError, match="measured again"):
            run(tiny, "quality>=0.9", **other)
    with pytest.raises(AssertionError, match="measured again"):
        run(tiny, "quality>=0.8")
    monkeypatch.setattr("headway.optimize.measuring.source_digest", lambda module: "edited since")
    with pytest.raises(AssertionError, match="measured again"):
        run(tiny, "quality>=0.9")


def test_an_interrupted_search_goes_on_where_it_was(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.optimize.measuring import Bench

    whole = run(tiny, "quality>=0.9", seed=3)
    measured: list[str] = []
    real = Bench.memory

    def interrupt_second(self: Bench, recipe: object) -> float:
        measured.append(str(recipe))
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(self, recipe)  # type: ignore[arg-type]

    shutil.rmtree(tiny.parent / "home" / "cache")
    monkeypatch.setattr(Bench, "memory", interrupt_second)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, "quality>=0.9", seed=3)
    monkeypatch.setattr(Bench, "memory", real)
    resumed = run(tiny, "quality>=0.9", seed=3)
    assert resumed.met == whole.met


def test_only_and_without_choose_the_systems(tiny: Path) -> None:
    result = run(tiny, "quality>=0.5", only=["int8"])
    assert {step.system for candidate in result.candidates for step in candidate.recipe.steps} <= {"int8"}
    with pytest.raises(BadInput, match="both asked for and excluded"):
        run(tiny, "", only=["int8"], without=["int8"])
    with pytest.raises(BadInput, match="no system"):
        run(tiny, "", only=["nothing"])


def test_a_fixed_part_is_in_every_candidate(tiny: Path) -> None:
    result = run(tiny, "quality>=0.5", recipe='int8(only="*.mlp.*")')
    chosen = [c for c in result.candidates if c.recipe.steps]
    assert chosen
    assert all(c.recipe.steps[0].settings["only"] == "*.mlp.*" for c in chosen)


def test_any_torch_module_takes_the_same_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    inputs = [(torch.randn(4, 64),) for _ in range(20)]
    model = headway.load(net, sample=inputs[0][0])
    result = headway.optimize(
        model,
        budget="quality>=0.6",
        minimize="size",
        workload=Workload(data=workload_from(inputs), quality="closeness"),
        time_s=600,
        threads=1,
    )
    assert result.met
    assert result.winner.measured["size_bytes"] < 0.6 * result.baseline.measured["size_bytes"]
    assert result.model.kernel_calls() > 0
    assert sum(p.numel() for p in net.parameters()) == 64 * 128 + 128 + 128 * 64 + 64


def test_a_text_too_short_names_both_numbers(tiny: Path) -> None:
    short = Workload(prompt_tokens=4, texts=Texts("a b c", "a b c", "a b c", "test"))
    with pytest.raises(BadInput, match=r"has \d+ tokens, 2 windows of \d+ need \d+"):
        run(tiny, "", workload=short)


def test_the_command_line_answers_in_json(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text(" ".join(np.random.default_rng(0).choice(WORDS.split(), 20_000)))
    words = ["optimize", str(tiny), "--budget", "quality>=0.9", "--minimize", "size", "--json", "--threads", "1"]
    assert main([*words, "--text", str(text), "--time", "10m", "-o", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"met", "budget", "baseline", "winner", "front", "artifact", "evidence", "report", "target"} <= set(document)
    assert Path(document["report"]).is_file()
    assert {"recipe", "measured", "predicted"} <= set(document["winner"])
    assert main([*words, "--text", str(text), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["memory_by_owner"]["weights"] > 0
    small = tmp_path / "target.json"
    small.write_text(replace(machine(), ram_bytes=1).dumps())
    assert main([*words, "--text", str(text), "--dry-run", "--target", str(small)]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "does not fit: it needs " in said and said.count("; ") == 1


def test_an_output_that_is_no_artifact_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(BadInput, match="no artifact"):
        run(tiny, "", output=tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "precious"


def test_a_head_of_its_own_leaves_the_embedding_alone(tmp_path: Path) -> None:
    folder = TinyFolder(tmp_path / "untied")
    folder.config["tie_word_embeddings"] = False
    rng = np.random.default_rng(1)
    folder.tensors["lm_head.weight"] = rng.normal(0, 0.3, folder.tensors["model.embed_tokens.weight"].shape).astype(
        "f4"
    )
    folder.write()
    result = run(folder.path, "quality>=0.8", only=["lut-gemm"])
    assert result.met
    assert result.model.weight("embedding") is not None
    given = headway.apply('lut-gemm(only="embedding", bits=4)', str(folder.path), text=_text(tmp_path), threads=1)
    assert given.weight("embedding").form != headway.load(str(folder.path)).weight("embedding").form


def test_a_run_out_of_time_measures_one_candidate_and_proves(tiny: Path) -> None:
    result = run(tiny, "quality>=0.5", time_s=0.01)
    assert len(result.candidates) == 2
    assert result.met


def test_the_time_counts_from_the_command_s_start(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic() - 1000.0
    monkeypatch.setattr(api, "time", SimpleNamespace(monotonic=lambda: began))
    assert len(run(tiny, "quality>=0.5", time_s=600.0).candidates) == 2


def _text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS.split(), 20000)))
    return path
