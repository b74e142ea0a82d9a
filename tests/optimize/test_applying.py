"""Applying one recipe: who is asked for calibration inputs, where they come from, and which sites two steps share."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import TinyFolder

import headway
from headway.cli.main import main
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.recipe import Recipe
from headway.optimize import api, subjects
from headway.optimize.applying import calibrates, check_sites


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of each test's own, on a machine that is not measured."""
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(api, "machine", lambda progress=None: SimpleNamespace(name="here", fingerprint="f"))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))


@pytest.fixture
def net() -> Model:
    return headway.load(network(), sample=torch.randn(3, 64, generator=torch.Generator().manual_seed(1)))


def weight(model: Model) -> np.ndarray:  # type: ignore[type-arg]
    return model.weight("0").dequantize()


@pytest.mark.parametrize(
    ("recipe", "asks"),
    [
        ("int8", False),
        ("int4(quantizer=rtn)", False),
        ("int4(quantizer=gptq)", True),
        ("lut-gemm(bits=4, quantizer=rtn)", False),
        ("lut-gemm(bits=4)", True),
        ('int8(only="0") + lut-gemm(only="2")', True),
    ],
)
def test_only_what_calibrates_asks_for_inputs(
    recipe: str, asks: bool, net: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibrates(Recipe.parse(recipe)) is asks

    def asked(*_: object) -> None:
        raise AssertionError("asked for inputs")

    monkeypatch.setattr(subjects, "make_subject", asked)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if asks else "error")
        if not asks:
            headway.apply(recipe, net, threads=1)
            return
        with pytest.raises(AssertionError, match="asked for inputs"):
            headway.apply(recipe, net, threads=1)


def test_a_language_model_without_calibration_reads_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("read the default text")

    monkeypatch.setattr("headway.optimize.language_subject.default_texts", never)
    model = headway.apply("int8", str(TinyFolder(tmp_path / "tiny").path), threads=1)
    assert {model.weight(site.name).form for site in model.sites() if site.kind == "linear"} == {"int8"}


def test_a_bare_module_calibrates_on_its_sample_and_says_so(net: Model) -> None:
    with pytest.warns(UserWarning, match="calibrated on its own sample alone: give inputs with"):
        on_sample = headway.apply("lut-gemm(bits=2)", net, threads=1)
    inputs = torch.randn(20, 64, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_data = headway.apply("lut-gemm(bits=2)", net, data=inputs, threads=1)
        again = headway.apply("lut-gemm(bits=2)", net, data=[row[None] for row in inputs], threads=1)
    assert not np.array_equal(weight(on_data), weight(on_sample))
    assert np.array_equal(weight(on_data), weight(again))


def test_data_comes_from_a_file_as_from_an_array(net: Model, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((10, 64)).astype(np.float32)
    np.save(tmp_path / "data.npy", inputs)
    from_file = headway.apply("lut-gemm(bits=2)", net, data=tmp_path / "data.npy", threads=1)
    from_array = headway.apply("lut-gemm(bits=2)", net, data=inputs, threads=1)
    assert np.array_equal(weight(from_file), weight(from_array))
    rows = [row[None] for row in inputs]
    for listed in (rows, [row.tolist() for row in rows], [(torch.from_numpy(row),) for row in rows]):
        made = headway.apply("lut-gemm(bits=2)", net, data=listed, threads=1)
        assert np.array_equal(weight(made), weight(from_array))
    with pytest.raises(BadInput, match="not finite"):
        headway.apply("lut-gemm(bits=2)", net, data=[np.full((1, 64), np.nan, np.float32)], threads=1)
    with pytest.raises(BadInput, match="for language models"):
        headway.apply("int8", net, text=tmp_path / "data.npy")


def test_two_steps_of_one_site_are_refused_naming_site_and_steps(net: Model) -> None:
    for recipe, shared in (
        ('int8(only="0") + lut-gemm(only="{0,2}")', "both take 0"),
        ('int8(only="*") + lut-gemm(only="*")', r"both take 2 sites \(0, 2\)"),
        ('int8(skip="0") + lut-gemm(only="2")', "both take 2"),
    ):
        with pytest.raises(BadInput, match=shared) as caught:
            check_sites(Recipe.parse(recipe), net)
        assert all(str(step) in str(caught.value) for step in Recipe.parse(recipe).steps)
    check_sites(Recipe.parse('int8(skip="0") + lut-gemm(only="0")'), net)
    with pytest.raises(BadInput, match="takes no site"):
        check_sites(Recipe.parse('int8(only="0", skip="0")'), net)
    for recipe in ('int8(only="nothing")', 'int8(only=["0", "nothing"])', 'int8(skip="nothing")'):
        with pytest.raises(BadInput, match=r"'nothing' is no site of .*; sites are: 0, 2"):
            check_sites(Recipe.parse(recipe), net)


def test_a_saved_module_comes_back_bit_for_bit_with_its_network(net: Model, tmp_path: Path) -> None:
    made = headway.apply("lut-gemm(bits=4, quantizer=rtn)", net, threads=1)
    from headway.core.artifact import write_artifact
    from headway.core.evidence import Evidence

    write_artifact(tmp_path / "out", made, "system = []\n", Evidence("apply", "m", {}, 0, 1))
    with pytest.raises(BadInput, match=r"headway\.load\(folder, module=network\)"):
        headway.load(tmp_path / "out")
    for folder in (tmp_path / "out", str(tmp_path / "out")):
        again = headway.load(folder, module=network())
        assert again.fingerprint() == made.fingerprint()
        assert torch.equal(again.run(net.sample), made.run(net.sample))  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="no artifact"):
        headway.load("int8", module=network())


def test_a_saved_module_of_the_users_function_is_built_by_it_only_when_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(64, 32), torch.ones(2, 64)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_networks", None)
    made = headway.apply("int8", "python:my_networks:make", threads=1)
    from headway.core.artifact import write_artifact
    from headway.core.evidence import Evidence

    write_artifact(tmp_path / "out", made, "system = []\n", Evidence("apply", "m", {}, 0, 1))
    with pytest.raises(BadInput, match="allow_code=True"):
        headway.load(tmp_path / "out")
    again = headway.load(tmp_path / "out", allow_code=True)
    assert torch.equal(again.run(made.sample), made.run(made.sample))  # type: ignore[attr-defined]


def test_models_save_into_a_folder_of_either_type_made_if_absent(net: Model, tmp_path: Path) -> None:
    language = headway.load(str(TinyFolder(tmp_path / "tiny").path))
    for number, model in enumerate((net, language)):
        model.save(str(tmp_path / f"{number}-text"))
        model.save(tmp_path / f"{number}-path")
        names = {path.name for path in (tmp_path / f"{number}-path").iterdir()}
        assert names == {path.name for path in (tmp_path / f"{number}-text").iterdir()} != set()


def test_the_memory_of_a_network_that_a_function_builds_is_measured_and_its_artifact_says_what_judged_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other_networks.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(64, 32), torch.ones(2, 64)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["apply", "int8", "python:other_networks:make", "-o", str(tmp_path / "out"), "--threads", "1"]) == 0
    said = capsys.readouterr().err
    note = "python:other_networks:make was judged on its own sample alone"
    assert note in said
    assert f"- {note}" in (tmp_path / "out" / "README.md").read_text()


def test_a_bfloat16_module_is_calibrated_too() -> None:
    half = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 64)).bfloat16().eval()
    sample = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    made = headway.apply("lut-gemm(bits=4, group_size=32)", headway.load(half, sample=sample), threads=1)
    closeness = torch.nn.functional.cosine_similarity(made.run((sample,)).float(), half(sample).float())
    assert closeness.min() > 0.95


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array(["a", "b"]), "an array of <U1"),
        (np.array(3.0), "of shape"),
        (np.ones((4, 64), np.complex64), "an array of complex64"),
        (np.full((4, 64), np.nan, np.float32), "not finite"),
        (np.array([None] * 4), "no array of numbers"),
    ],
)
def test_data_that_no_network_can_be_fed_with_is_named(
    array: np.ndarray, words: str, net: Model, tmp_path: Path
) -> None:
    np.save(tmp_path / "data.npy", array, allow_pickle=True)
    with pytest.raises(BadInput, match=words):
        headway.apply("int8", net, data=tmp_path / "data.npy", threads=1)


def test_a_report_replaces_reports_alone(tmp_path: Path) -> None:
    from headway.core.evidence import Evidence
    from headway.optimize.report import write_report

    precious = tmp_path / "work.py"
    precious.write_text("mine")
    evidence = Evidence("prove", "lut-gemm", {}, 0, 1)
    with pytest.raises(BadInput, match="is there and is no report"):
        write_report(precious, [evidence])
    assert precious.read_text() == "mine"
    for _ in range(2):
        write_report(tmp_path / "report.html", [evidence])


def test_a_text_that_is_too_short_is_refused_before_this_machine_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured the machine")

    monkeypatch.setattr(api, "machine", never)
    TinyFolder(tmp_path / "model").write()
    model, short = tmp_path / "model", tmp_path / "short.txt"
    short.write_text("a few words\n" * 10)
    for run in (
        lambda: headway.optimize(model, budget="size<=1MB", text=short),
        lambda: headway.optimize(model, budget="size<=1MB", context=10**6),
        lambda: api.apply_and_save("int4", model, tmp_path / "out", text=short),
    ):
        with pytest.raises(BadInput, match=r"two windows|windows of|does not fit"):
            run()
    assert not (tmp_path / "out").exists()
