"""Ctrl-C that cannot get lost.

Python raises `KeyboardInterrupt` wherever the program happens to be. Inside a destructor, or in an extension that
clears errors while it is imported, the exception is dropped and the program would run on to its end. `kept` remembers
that Ctrl-C was heard; long work calls `check` between two steps, which raises it again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_heard = False


@contextmanager
def kept() -> Iterator[None]:
    """Remember Ctrl-C while the block runs; where it is ignored, or handled by somebody else, that stays so."""
    global _heard
    _heard = False
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _hear)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _hear:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _heard = False


def check() -> None:
    """Raises `KeyboardInterrupt` when Ctrl-C was heard, whatever became of the exception it raised then."""
    if _heard:
        raise KeyboardInterrupt


def _hear(number: int, frame: FrameType | None) -> None:
    global _heard
    _heard = True
    raise KeyboardInterrupt
