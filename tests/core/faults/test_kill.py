"""Ended at any instant, by SIGKILL or Ctrl-C: what was finished is kept, the rest is as before, and work goes on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from busy import last_of
from storm import ended_at, instants

HERE = Path(__file__).parent


def storm(folder: Path, count: int, total_s: float) -> int:
    """Ends the worker `count` times; gives how many things were saved in all."""
    paths = os.pathsep.join([str(HERE.parent), *sys.path])
    done = 0
    for number, instant in enumerate(instants(count, total_s)):
        with_ctrl_c = number % 5 == 4
        ended = ended_at(
            [sys.executable, str(HERE / "busy.py"), str(folder)],
            instant,
            signal.SIGINT if with_ctrl_c else signal.SIGKILL,
            ready="ready",
            environment={**os.environ, "PYTHONPATH": paths},
        )
        assert ended.code == (-signal.SIGINT if with_ctrl_c else -signal.SIGKILL), ended.errors
        printed = [int(line) for line in ended.output.split() if line != "ready"]
        saved = last_of(folder)
        assert saved >= max(printed, default=done), "something finished was lost"
        assert saved <= max(printed, default=done) + 1
        done = saved
    return done


def test_a_short_storm_loses_nothing(tmp_path: Path) -> None:
    assert storm(tmp_path, 10, 0.4) > 0


@pytest.mark.nightly
def test_two_hundred_and_fifty_ends_lose_nothing(tmp_path: Path) -> None:
    assert storm(tmp_path, 250, 1.0) > 0
