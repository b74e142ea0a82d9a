"""The chat of `headway generate`, on a terminal of its own."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import TinyFolder

PATIENCE_S = 30.0
LONG = b"abc " * 100
"""More tokens than the context of the tiny model."""


class Terminal:
    """What is typed to `headway generate` and what is seen."""

    def __init__(self, model: Path) -> None:
        self.keys, slave = pty.openpty()
        command = [sys.executable, "-m", "headway", "generate", str(model), "--max-tokens", "3", "--threads", "1"]
        opened = f'exec "$@" <>{os.ttyname(slave)} >&0 2>&0'  # the leader of a session gets the terminal it opens
        self.process = subprocess.Popen(
            ["sh", "-c", opened, "sh", *command],
            start_new_session=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        self.slave = slave
        self.seen = ""

    def reads(self, text: str) -> str:
        """What is seen up to `text`, which comes next."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert select.select([self.keys], [], [], deadline - time.monotonic())[0], self.seen
            self.seen += os.read(self.keys, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def types(self, keys: bytes) -> None:
        os.write(self.keys, keys)

    def waits(self) -> None:
        """Until the program sleeps in its read: Python hears Ctrl-C late where it comes just before that."""
        deadline = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{self.process.pid}/stat").read_text().split()[2] != "S":
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def ends(self) -> str:
        """What is seen before the program ends with 0."""
        assert self.process.wait(PATIENCE_S) == 0
        while select.select([self.keys], [], [], 0)[0]:
            self.seen += os.read(self.keys, 4096).decode(errors="replace")
        return self.seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keys)
        os.close(self.slave)


@pytest.mark.parametrize("last", [b"\x03", b"\x04"])
def test_a_chat_goes_on_after_what_it_cannot_take_and_ends_without_a_word(last: bytes, tmp_path: Path) -> None:
    terminal = Terminal(TinyFolder(tmp_path / "tiny").path)
    try:
        terminal.reads("> ")
        for keys, said in ((LONG, "the context"), (b"\xff", "not utf-8; type it again"), (b"the", "the\r\n")):
            terminal.types(keys + b"\n")
            terminal.reads(said)
            assert "Traceback" not in terminal.reads("> ")
        terminal.waits()
        terminal.types(last)
        assert terminal.ends().replace("^C", "").strip() == ""
    finally:
        terminal.close()
