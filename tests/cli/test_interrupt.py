"""Ctrl-C through the real command, while it loads and while a child process measures: one line, 130, no orphan."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import TinyFolder

from headway.core.sandbox_child import below

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "the",
    "dog",
    "run",
    "to",
    "its",
    "house",
    "near",
    "a",
    "tree",
    "by",
    "the",
    "road",
]
PATIENCE_S = 120.0


def loading(pid: int) -> bool:
    """Libraries of the model's loader are in memory."""
    return "safetensors" in Path(f"/proc/{pid}/maps").read_text()


def measuring(pid: int) -> bool:
    """A child of the sandbox is at work."""
    return len(below(pid)) >= 2


@pytest.mark.parametrize("phase", [loading, measuring])
def test_ctrl_c_says_in_one_line_that_what_was_measured_is_kept(
    phase: Callable[[int], bool], home: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text(" ".join(np.random.default_rng(0).choice(WORDS, 20_000)))
    words = ["optimize", str(TinyFolder(tmp_path / "tiny").path), "--text", str(text), "--threads", "1", "--quiet"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("headway")), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not phase(process.pid):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        children = below(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err == "headway: interrupted; everything measured so far is kept, run the same command to go on\n"
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a child lives on"
        time.sleep(0.005)


def test_ctrl_c_within_evaluated_text_ends_a_module_with_130_too(tmp_path: Path) -> None:
    (tmp_path / "evaluates.py").write_text(
        "import signal, sys; from headway.cli import main\n"
        "main._answer = lambda words: eval('signal.raise_signal(signal.SIGINT)')\n"
        "sys.exit(main.main(['systems']))"
    )
    command = [sys.executable, "-m", "evaluates"]
    assert subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL, check=False).returncode == 130
