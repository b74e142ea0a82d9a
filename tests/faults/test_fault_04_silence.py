"""Silence: the README's commands reach no network and write nowhere but in cache, state and output folders.

Each runs in an empty network namespace with its system calls watched, and gives what it gives with a network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from known_machine import use_home
from tiny_models import TinyFolder
from watched import Seen, loopback, watched

HEADWAY = [sys.executable, "-m", "headway"]
SHELF = Path(__file__).parents[1] / "golden" / "0.1.0" / "int4"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "its", "house", "near", "tree", "by")


class Desk:
    """A folder with a tiny model and a text, a home with and one without a network."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        TinyFolder(folder / "tiny")
        (folder / "text").write_text(" ".join(np.random.default_rng(0).choice(WORDS, 6000)))
        for name in ("run", "out"):
            (folder / name).mkdir()
        monkeypatch.setenv("HEADWAY_HOME", "")  # put back afterwards
        for home in ("silent", "open"):
            use_home(folder / home)
        self.how, self.commands, self.files = "", 0, 0

    def environment(self, home: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PYTHONPATH"))}
        return {**kept, "HEADWAY_HOME": str(self.folder / home), "HOME": str(self.folder / "run")}

    def silent(self, *words: str) -> Seen:
        seen = watched([*HEADWAY, *words], self.environment("silent"), self.folder / "run")
        assert seen.connected == []
        assert seen.outside([self.folder / "silent", self.folder / "out"]) == []
        self.how, self.commands, self.files = seen.how, self.commands + 1, self.files + len(set(seen.written))
        return seen

    def open(self, *words: str, home: str = "open") -> str:
        run = subprocess.run(
            [*HEADWAY, *words], env=self.environment(home), capture_output=True, text=True, cwd=self.folder / "run"
        )
        assert run.returncode == 0, run.stderr[-2000:]
        return run.stdout

    def figures(self) -> dict[str, object]:
        counts = {"commands": self.commands, "files_written": self.files, "outside": 0, "connections": 0}
        return {**counts, "by": self.how}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def test_three_commands_are_silent(desk: Desk, figures: Callable[..., None]) -> None:
    words = ["generate", str(desk.folder / "tiny"), "-p", "the cat", "--max-tokens", "8", "--temperature", "0"]
    assert desk.silent(*words).output == desk.open(*words)
    assert desk.silent("systems").output == desk.open("systems")
    desk.silent("report", str(SHELF), "-o", str(desk.folder / "out" / "report.html"))
    figures(**desk.figures())


@pytest.mark.nightly
def test_every_command_of_the_readme_is_silent(desk: Desk, figures: Callable[..., None]) -> None:
    tiny, out = str(desk.folder / "tiny"), desk.folder / "out"
    desk.silent("probe", "--quick")
    for words in (
        ["systems"],
        ["systems", "lut-gemm"],
        ["systems", "--models"],
        ["generate", tiny, "-p", "the cat", "--max-tokens", "8", "--temperature", "0"],
    ):
        assert desk.silent(*words).output == desk.open(*words)
    apply = ["apply", "lut-gemm(bits=4)", tiny, "--text", str(desk.folder / "text"), "--threads", "1"]
    desk.silent(*apply, "-o", str(out / "silent"))
    desk.open(*apply, "-o", str(desk.folder / "open-out"))
    for weights in (out / "silent").glob("*.safetensors"):
        assert weights.read_bytes() == (desk.folder / "open-out" / weights.name).read_bytes()
    bench = ["bench", tiny, "--against", "torch", "--prefill", "16", "--decode", "8", "--context", "8", "--json"]
    seen = desk.silent(*bench)
    assert [row["engine"] for row in json.loads(seen.output)["engines"]] == ["headway", "torch"]
    words = ["optimize", tiny, "--budget", "quality>=0.9", "--minimize", "size", "--text", str(desk.folder / "text")]
    words += ["--threads", "1", "--time", "1h", "--json", "-o", str(out / "best")]
    first = json.loads(desk.silent(*words).output)
    again = json.loads(desk.open(*words, home="silent"))  # from the cache, with a network
    for document in (first, again):
        assert document.pop("met")
    assert [(c["recipe"], c["measured"]) for c in first["front"]] == [
        (c["recipe"], c["measured"]) for c in again["front"]
    ]
    for artifact in ("silent", "best"):
        desk.silent("report", str(out / artifact), "-o", str(out / f"{artifact}.html"))
    figures(**desk.figures())


def test_what_is_not_silent_is_seen(tmp_path: Path, figures: Callable[..., None]) -> None:
    """The watch itself: a connection and a file outside are found."""
    code = (
        "import socket, pathlib; pathlib.Path('outside').write_text('x')\n"
        "s = socket.socket(); s.settimeout(0.1)\n"
        "try: s.connect(('192.0.2.1', 9))\nexcept OSError: pass"
    )
    seen = watched([sys.executable, "-c", code], dict(os.environ), tmp_path)
    assert seen.connected == ["192.0.2.1"]
    assert seen.outside([tmp_path / "out"]) == [str(tmp_path / "outside")]
    assert loopback("127.0.0.1")
    figures(by=seen.how)
