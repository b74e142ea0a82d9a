"""Saves on a disk of a given size: `python full_disk.py FOLDER KILOBYTES`, in a namespace of its own where allowed.

Mounts a tmpfs of that size on FOLDER; where that is not allowed, files that grow beyond the size fail instead. Prints
how the disk was made small, how the saving ended and what is there afterwards.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from pathlib import Path

from artifacts import RECIPE, SmallModel, evidence, value_in

from headway.core.artifact import read_manifest, write_artifact
from headway.core.cache import StepCache
from headway.core.errors import HeadwayError
from headway.core.ledger import Ledger

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18


def make_small(folder: Path, kilobytes: int) -> str:
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNS) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={kilobytes}k".encode()) == 0:
            return "tmpfs"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, resource.RLIM_INFINITY))
    return "rlimit"


def refused(act: object) -> str:
    try:
        act()  # type: ignore[operator]
        return ""
    except HeadwayError as error:
        assert error.exit_code == 3, f"{error} says {error.exit_code}"
        return str(error)


def main() -> None:
    folder, kilobytes = Path(sys.argv[1]), int(sys.argv[2])
    how = make_small(folder, kilobytes)
    out, small, large = folder / "out", SmallModel(1.0, 100), SmallModel(2.0, 50_000)
    first = refused(lambda: write_artifact(out, small, RECIPE, evidence(1)))
    second = refused(lambda: write_artifact(out, large, RECIPE, evidence(2)))
    if not first or not second:
        read_manifest(out)
    values = value_in(out) if out.exists() else 0.0
    left = [path.name for path in folder.iterdir() if path.name != "out"]
    cache = refused(lambda: StepCache(folder / "steps").arrays("k", lambda: {"a": large.values}))
    ledger = refused(lambda: Ledger(folder / "ledger.sqlite3").append(evidence(3)))
    kept = "" if ledger else [found.seed for found in Ledger(folder / "ledger.sqlite3").all()]
    print(json.dumps([how, first, second, values, left, cache, ledger, kept]))


if __name__ == "__main__":
    main()
