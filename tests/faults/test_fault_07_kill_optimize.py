"""Kill storm on `headway optimize`: SIGKILL and Ctrl-C at uniform instants, and every round ends with the same front.

At most one step is repeated per end, none that was finished; the ledger stays sound, the artifact whole or absent,
no process is left behind, and Ctrl-C gives 130.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import TinyFolder

HERE = Path(__file__).parent
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "its", "house", "near", "tree", "by")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model and a text."""
    TinyFolder(tmp_path / "tiny")
    (tmp_path / "text").write_text(" ".join(np.random.default_rng(0).choice(WORDS, 6000)))
    return tmp_path


def storm(folder: Path, kills: int, interrupts: int) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, str(HERE / "storm_server.py"), str(folder), str(kills), str(interrupts)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["kills"] == kills
    assert found["interrupts"] == interrupts
    assert found["front"] > 1, "a front of one shows nothing"
    return found


def test_five_kills_and_two_interrupts_lose_nothing(folder: Path, figures: Callable[..., None]) -> None:
    figures(**storm(folder, 5, 2))


@pytest.mark.nightly
def test_two_hundred_kills_and_fifty_interrupts_lose_nothing(folder: Path, figures: Callable[..., None]) -> None:
    figures(**storm(folder, 200, 50))


@pytest.mark.nightly
def test_ctrl_c_of_the_command_itself_gives_130(folder: Path, figures: Callable[..., None]) -> None:
    """The command in a process group of its own, as from a terminal: from its first line of code to its last."""
    code = "print('ready', flush=True); import sys; from headway.cli.main import main; sys.exit(main())"
    words = ["optimize", str(folder / "tiny"), "--text", str(folder / "text"), "--quiet", "--threads", "1"]
    environment = {**os.environ, "HEADWAY_HOME": str(folder / "home")}
    subprocess.run([sys.executable, "-m", "headway", "probe", "--quick", "--quiet"], env=environment, check=True)
    generator, codes = random.Random(7), []
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0.3, 8.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=30)
            codes.append(process.returncode)
            assert process.returncode == 130, errors[-2000:]
            assert "Traceback" not in errors
        else:
            process.communicate()
    assert codes, "every run had finished"
    figures(interrupts=len(codes))
