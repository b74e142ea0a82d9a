"""The command line: exit codes, one-line errors, and an answer at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headway.cli.main import VERBS, main
from headway.core.artifact import write_artifact
from headway.core.errors import BadInput, Lacking
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger
from headway.core.registry import systems
from headway.core.target import Target
from headway.hardware import probe
from headway.hardware.machine import read_machine
from headway.kernels import cpu
from headway.optimize import api
from headway.optimize.report import write_report
from headway.optimize.request import check_output
from headway.serving.messages import Setup


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
        (["prove", "lut-gemm", "--all"], "--all proves every system, and 'lut-gemm' names one"),
        (["report"], "no evidence named"),
        (["generate", "smollm2-135m", "--device", "tpu", "-p", "a"], "cpu"),
        (["generate", "", "-p", "a"], "the model's name is empty"),
        (["bench", " "], "the model's name is empty"),
        (["optimize", ""], "the model's name is empty"),
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


@pytest.fixture
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, where loading a model or measuring the machine is a failure."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded or measured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(api, "load", never)
    monkeypatch.setattr(api, "machine", never)
    monkeypatch.setattr(probe, "probe", never)
    os.mkfifo("fifo.npy")
    Path("folder").mkdir()
    Path("file").touch()
    Path("judge_of_one.py").write_text("def judge(one): return 1.0\n")


EVERYTHING = ",".join(systems())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["optimize", "m", "--without", EVERYTHING], "nothing is left to search"),
        (["optimize", "m", "--only", ""], "names no system"),
        (["optimize", "m", "--without", " ,"], "--without names no system"),
        (["optimize", "m", "--only", "sarathi-serve"], "nothing is left to search"),
        (["probe", "-o", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["bench", "m", "-o", "/nowhere/at/all.html"], "there is no folder /nowhere/at"),
        (["optimize", "m", "--recipe", "int8", "--without", "int8"], "int8 is in the fixed recipe and excluded"),
        (["optimize", "m", "-o", "/proc/x"], "cannot write in /proc"),
        (["optimize", "m", "-o", "file"], "file is no folder"),
        (["optimize", "m", "-o", "file/below"], "cannot write in"),
        (["optimize", "m", "--budget", "quality>=2"], "character 10: quality>=2 can never hold"),
        (["optimize", "m", "--budget", "kl<=0.02x"], "character 9: kl has no unit 'x'"),
        (["optimize", "m", "--budget", "cost<=1USD/h"], "cost is no property"),
        (["optimize", "m", "--dry-run", "--only", "nothing"], "no system"),
        (["optimize", "m", "--data", "fifo.npy"], "no plain file"),
        (["optimize", "m", "--data", "folder"], "no plain file"),
        (["optimize", "m", "--data", "/dev/zero"], "no plain file"),
        (["optimize", "m", "--text", "fifo.npy"], "no plain file"),
        (["optimize", "m", "--text", "missing"], "no text file"),
        (["optimize", "m", "--target", "fifo.npy", "--dry-run"], "no plain file"),
        (["optimize", "m", "--quality", "judge_of_one:judge"], "takes (one)"),
        (["optimize", "m", "--quality", "judge_of_one:other"], "no attribute"),
        (["apply", "", "m", "-o", "out"], "the recipe is empty"),
        (["apply", "/dev/null", "m", "-o", "out"], "no .toml file"),
        (["apply", "folder", "m", "-o", "out"], "a folder without recipe.toml"),
        (["apply", "lut-gemm(bits='3')", "m", "-o", "out"], "bits='3'"),
        (["apply", "lut-gemm(bits=true)", "m", "-o", "out"], "bits=True"),
        (["apply", "lut-gemm(only='[')", "m", "-o", "out"], "open '['"),
        (["apply", "int8", "m", "-o", "file"], "file is no folder"),
        (["apply", "int8", "m", "-o", "."], ". is the folder you are in"),
        (["optimize", "m", "-o", ".."], ".. is the folder you are in"),
        (["apply", "int8", "m", "-o", "out", "--data", "fifo.npy"], "no plain file"),
        (["optimize", "m", "--only", "int8", "--only", "lut-gemm"], "--only is given twice"),
        (["generate", "m", "-p", ""], "the prompt is empty"),
        (["generate", "m", ""], "'' is one argument too many"),
        (["generate", "m", "-p", "a", "--recipe", ""], "the recipe is empty"),
        (["systems", "--models", "x"], "leave one of the two out"),
        (["report", "fifo.npy"], "no plain file"),
        (["probe", "-o", "/proc/x"], "cannot write in /proc"),
    ],
)
@pytest.mark.usefixtures("nothing_runs")
def test_what_cannot_work_is_refused_before_anything_is_loaded_or_measured(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    assert main(words) == 2
    said = capsys.readouterr()
    assert part in said.err
    assert said.err.count("\n") == 1
    assert said.err.startswith("headway: ")
    assert "; " in said.err
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before


@pytest.mark.parametrize(
    ("error", "code"), [(BadInput("wrong", "mend it"), 2), (Lacking("none", "get one"), 3), (MemoryError(), 3)]
)
@pytest.mark.parametrize("options", [[], ["-v"]])
def test_v_adds_a_traceback_and_leaves_the_exit_code(
    error: Exception, code: int, options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setenv("HEADWAY_TRACEBACK", "")
    monkeypatch.setattr("headway.optimize.api.load", fails)
    assert main(["generate", "m", "-p", "a", *options]) == code
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("headway: ")
    assert ("Traceback" in said) == bool(options)


def test_generate_uses_the_threads_it_is_given_and_what_room_the_context_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    class Short:
        name = "short"

        def generate(self, prompt: str, **options: Any) -> str:
            used.append((cpu.threads(), options["max_tokens"]))
            return "b"

    monkeypatch.setattr("headway.optimize.api.load", lambda model, allow_code: Short())
    monkeypatch.setattr("headway.optimize.load.as_language", lambda model: model)
    before = cpu.threads()
    try:
        for words in (["--threads", "1"], ["--threads", "3", "--max-tokens", "5"]):
            assert main(["generate", "m", "-p", "a", *words]) == 0
    finally:
        cpu.set_threads(before)
    assert used == [(1, None), (3, 5)]
    assert capsys.readouterr().out == "\n\n"


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ["optimize", "m"],
        ["optimize", "m", "--dry-run"],
        ["apply", "int8", "m", "-o", "out"],
        ["generate", "m", "-p", "a"],
        ["bench", "m"],
        ["bench", "m", "--trace", "azure-conv"],
        ["prove", "lut-gemm", "--model", "m"],
    ],
)
def test_the_code_behind_an_artifact_is_run_only_where_the_command_says_so(
    words: list[str], asked: bool, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(model: str, sample: Any = None, *, allow_code: bool) -> Any:
        assert model == "m" and allow_code is asked
        raise Lacking("loaded", "")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "load", load)
    assert main([*words, *["--allow-code"] * asked]) == 3


@pytest.mark.parametrize("asked", [False, True])
def test_a_served_process_is_told_whether_code_may_be_run(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(setups: list[Setup], *_: object, **__: object) -> int:
        assert [setup.allow_code for setup in setups] == [asked]
        return 0

    monkeypatch.setattr("headway.serving.http.server.serve", serve)
    assert main(["serve", "m", *["--allow-code"] * asked]) == 0


def test_an_artifact_of_the_users_function_can_be_worked_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(64, 32), torch.ones(2, 64)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = api.load("python:nets_of_mine:make")
    write_artifact(tmp_path / "net", made, "system = []\n", Evidence("apply", "m", {}, 0, 1))
    words = ["bench", str(tmp_path / "net"), "--windows", "0", "--threads", "1"]
    assert main(words) == 2
    assert "let it run: --allow-code" in capsys.readouterr().err
    assert main([*words, "--allow-code"]) == 0


@pytest.mark.parametrize("words", [["--minimize", "energy"], ["--budget", "energy<=1J"]])
@pytest.mark.usefixtures("nothing_runs")
def test_energy_without_a_counter_is_what_the_machine_lacks(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("headway.optimize.request.POWERCAP", tmp_path)
    assert main(["optimize", "m", *words]) == 3
    assert "no energy counter" in capsys.readouterr().err
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1")
    assert main(["optimize", "m", *words]) == 3
    assert "energy is not measured yet" in capsys.readouterr().err


def test_a_terminal_sees_a_caret_under_the_character(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["optimize", "m", "--budget", "quality>=2"]) == 2
    assert capsys.readouterr().err.splitlines()[:2] == ["quality>=2", " " * 9 + "^"]


def test_every_json_document_names_the_machine_without_measuring_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    Ledger.open().append(Evidence("optimize", "m", {"name": "here", "fingerprint": "f"}, 1, 0))
    documents = []
    for words in (
        ["systems"],
        ["systems", "--models"],
        ["systems", "int8"],
        ["report", "--ledger", "-o", str(tmp_path / "r.html")],
    ):
        assert main([*words, "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    for document in documents:
        assert {"schema", "headway", "target", "seed"} <= set(document)
        assert document["target"]["fingerprint"] == read_machine().fingerprint
    assert not list(tmp_path.glob("state/targets/*"))


def test_help_and_listing_import_nothing_heavy() -> None:
    code = (
        "import sys; from headway.cli.main import main;"
        "assert main(['--help']) == 0; assert main(['systems']) == 0;"
        "heavy = ('torch', 'numpy', 'scipy', 'optuna', 'tokenizers', 'typer', 'pydantic');"
        "print([m for m in heavy if m in sys.modules])"
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
    printed = capsys.readouterr().out
    (tmp_path / "printed.json").write_text(printed)
    assert Target.load(tmp_path / "printed.json") == Target.load(tmp_path / "target.json")
    document = json.loads(printed)
    assert {"memory", "compute", "dispatch_s", "ram_bytes", "isa", "gpu", "target", "schema"} <= set(document)
    assert json.loads((tmp_path / "target.json").read_text())["fingerprint"] == document["fingerprint"]
    assert main(["probe", "--quick"]) == 0
    assert "DRAM" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", ["sse9", "AVX2"])
def test_an_unknown_instruction_set_is_one_line(wanted: str) -> None:
    code = "import sys; from headway.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "smollm2-135m"],
        env={**os.environ, "HEADWAY_ISA": wanted},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"headway: HEADWAY_ISA={wanted} is no instruction set; use avx512, avx2 or portable\n"


def test_a_file_beside_the_artifact_is_not_taken_for_its_report(tmp_path: Path) -> None:
    (tmp_path / "out.html").write_text("precious")
    with pytest.raises(BadInput, match="is no report"):
        check_output(tmp_path / "out")
    (tmp_path / "out.html").unlink()
    write_report(tmp_path / "out.html", [Evidence("bench", "tiny", {"name": "here"}, 0, 1)])
    check_output(tmp_path / "out")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_common_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--json", "--quiet", "--verbose", "--threads", "--seed", "--device"):
        assert option in said


@pytest.mark.parametrize("raised", ["RuntimeError('boom')", "KeyError('boom')", "SystemExit(5)"])
def test_a_users_factory_that_fails_is_one_line(
    raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"factory_{abs(hash(raised))}"
    (tmp_path / f"{name}.py").write_text(f"def make(): raise {raised}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["apply", "int8", f"python:{name}:make", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and f"{name}:make failed" in said[0] and "mend the function" in said[0]
    assert not (tmp_path / "out").exists()


def test_a_card_is_shown_where_no_ledger_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    assert main(["systems", "lut-gemm"]) == 0
    assert "no evidence here yet" in capsys.readouterr().out


WITHOUT = """
import sys
from pathlib import Path

class Hiding:  # a finder that does not see some packages, as where they are not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == sys.argv[1] else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("torch", "torch", ["optimize", "smollm2-135m", "-o", "out"]),
        ("torch", "torch", ["apply", "int8", "smollm2-135m", "-o", "out"]),
        ("torch", "torch", ["systems", "shvit"]),
        ("optuna", "search", ["optimize", "smollm2-135m", "-o", "out"]),
        ("tokenizers", "llm", ["generate", "smollm2-135m", "-p", "a"]),
        ("starlette", "serve", ["serve", "smollm2-135m"]),
    ],
)
def test_a_missing_optional_package_is_one_line_with_the_extra_and_exit_3(
    package: str, extra: str, words: list[str], home: Path, tmp_path: Path
) -> None:
    code = WITHOUT + "from headway.cli.main import main; sys.exit(main(sys.argv[2:]))"
    command = [sys.executable, "-c", code, package, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    mend = f"headway: the Python package {package!r} is not installed; run: pip install 'headway[{extra}]'"
    assert done.stderr.splitlines()[-1:] == [mend]
    assert "Traceback" not in done.stderr
    assert done.returncode == 3


def test_python_names_the_extra_of_a_missing_package_too() -> None:
    code = (
        WITHOUT
        + "import headway\n"
        + "for call in (lambda: headway.optimize('smollm2-135m'), lambda: headway.apply('int8', 'smollm2-135m'),\n"
        + "             lambda: headway.load(3)):\n"
        + "    try: call()\n"
        + "    except Exception as error: print(type(error).__name__, error.mend)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, "torch"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["Lacking run: pip install 'headway[torch]'"] * 3
