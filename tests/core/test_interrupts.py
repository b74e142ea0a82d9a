from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from headway.core import interrupts
from headway.core.cache import StepCache
from headway.core.measure import compare


class Swallows:
    """Its destructor gets Ctrl-C, where Python drops what is raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def ordinary_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_destructor_swallowed_is_raised_at_the_next_step(tmp_path: Path) -> None:
    built = []
    with interrupts.kept():
        lost = Swallows()
        del lost
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt):
            StepCache(tmp_path).json("a" * 64, lambda: built.append(1))
        with pytest.raises(KeyboardInterrupt):
            compare({"a": lambda: None}, rounds=2)
    assert not built
    interrupts.check()  # the next run starts afresh
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.kept():
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("ran on")
    interrupts.check()


def test_a_handler_of_somebody_else_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.kept():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_may_run_a_command() -> None:
    said = []

    def run() -> None:
        with interrupts.kept():
            said.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert said == [True]
