"""Standard streams that are closed, full, without a reader or not UTF-8: the exit code and one line, whatever holds."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinyFolder

from headway.cli.main import main


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(TinyFolder(tmp_path_factory.mktemp("tiny") / "tiny").path)


@pytest.fixture
def no_reader() -> Iterator[int]:
    """The end of a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("words", [["systems"], ["systems", "lut-gemm"], ["systems", "--json"], ["bench", "--help"]])
def test_a_reader_that_closes_the_pipe_has_seen_enough(words: list[str], no_reader: int) -> None:
    command = [sys.executable, "-m", "headway", *words]
    done = subprocess.run(command, stdout=no_reader, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_may_leave_in_the_middle_of_an_answer(
    tiny: str, no_reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with os.fdopen(os.dup(no_reader), "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["generate", tiny, "-p", "the", "--max-tokens", "3", "--threads", "1"]) == 0


def test_an_error_that_nobody_reads_keeps_its_exit_code(no_reader: int) -> None:
    command = [sys.executable, "-m", "headway", "systems", "no-such-system"]
    assert subprocess.run(command, stderr=no_reader, check=False).returncode == 2


@pytest.mark.parametrize("words", [["systems"], ["systems", "--json"], ["--help"]])
def test_a_full_disk_behind_standard_output_is_what_the_machine_lacks(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "headway", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    mend = "free disk space there or choose another folder"
    assert done.stderr == f"headway: standard output: No space left on device; {mend}\n"
    assert done.returncode == 3


def test_a_disk_that_fills_up_in_the_middle_of_an_answer_is_no_bad_input(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["generate", tiny, "-p", "the", "--max-tokens", "3", "--threads", "1"]) == 3
    assert "standard output: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("closed", ["<&-", ">&- <&-"])
def test_without_standard_input_there_is_no_prompt(options: list[str], closed: str, tiny: str) -> None:
    command = [sys.executable, "-m", "headway", "generate", tiny, *options]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.stderr == 'headway: no prompt; give one with -p "..." or on standard input\n'
    assert done.returncode == 2


def test_a_card_can_be_asked_for_with_every_stream_closed() -> None:
    command = [sys.executable, "-m", "headway", "systems", "lut-gemm", "--json"]
    assert subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=False).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_standard_output_cannot_encode_is_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Speaks:
        name = "speaks"

        def generate(self, prompt: str, stream: Callable[[str], None] | None, **options: Any) -> str:
            if stream is not None:
                stream("é→")
            return "é→"

    monkeypatch.setattr("headway.optimize.api.load", lambda model, allow_code: Speaks())
    monkeypatch.setattr("headway.optimize.load.as_language", lambda model: model)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert main(["generate", "m", "-p", "a", "--threads", "1"]) == 0
    assert written.getvalue() == "é→\n".encode(encoding, "backslashreplace")
    written.truncate(written.seek(0))
    assert main(["generate", "m", "-p", "a", "--threads", "1", "--json"]) == 0
    assert json.loads(written.getvalue())["text"] == "é→"
    assert capsys.readouterr().err == ""
