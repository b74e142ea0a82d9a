"""Where system calls cannot be watched: log every connection and every file that Python opens to write or makes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LOG = os.open(os.environ["HEADWAY_AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MAKES = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0}


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(LOG, f"connect {arguments[1][0]}\n".encode())
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        os.write(LOG, f"write {Path(os.fsdecode(arguments[0])).absolute()}\n".encode())  # type: ignore[arg-type]
    elif event in MAKES:
        os.write(LOG, f"write {Path(os.fsdecode(arguments[MAKES[event]])).absolute()}\n".encode())  # type: ignore[arg-type]


sys.addaudithook(watch)
