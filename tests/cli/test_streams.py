"""Standard streams that are closed, full, without a reader or not UTF-8: the exit code and one line, whatever holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

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
