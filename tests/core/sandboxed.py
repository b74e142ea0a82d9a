"""Functions that tests run in a sandboxed child."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path


def add(a: int, b: int) -> dict[str, int]:
    print("adding")
    return {"sum": a + b}


def fail(message: str) -> None:
    raise ValueError(message)


def unprintable() -> object:
    return object()


def leave(code: int) -> None:
    os._exit(code)


def touch(megabytes: int, seconds: float = 0.0) -> None:
    """Use exactly so much anonymous memory."""
    block = mmap.mmap(-1, megabytes << 20)
    for page in range(0, megabytes << 20, 4096):
        block[page] = 1
    time.sleep(seconds)


def allocate(megabytes: int) -> int:
    return len(bytearray(megabytes << 20))


def spin() -> None:
    while True:
        pass


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def children(count: int, megabytes: int) -> None:
    """Several processes that share a limit: each far below it, together beyond it."""
    code = f"import time; b = bytearray({megabytes} << 20); time.sleep(60)"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    for process in started:
        process.wait()


def detach(path: str) -> None:
    """Leave a process behind that outlives this one, its number in a file."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    Path(path).write_text(str(process.pid))


def run_inside(path: str) -> None:
    """A sandbox within this process: its child writes its own and its grandchild's number, then sleeps."""
    from headway.core.sandbox import run_function

    run_function("sandboxed:tell_and_sleep", {"path": path})


def tell_and_sleep(path: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    new = Path(path + ".new")
    new.write_text(f"{os.getpid()} {process.pid}")
    new.rename(path)
    time.sleep(60)
