"""Things that are saved, and what must be true of them afterwards; run below the shim by `test_kth_io`.

    python breakable.py SCENARIO FOLDER

fails the 1st, 2nd, ... operation of every kind until a run passes untouched, and prints what happened as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from artifacts import RECIPE, SmallModel, evidence, value_in

from headway.core import files
from headway.core.artifact import read_manifest, write_artifact
from headway.core.cache import StepCache
from headway.core.errors import HeadwayError
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger

KINDS = ["eio", "enospc", "short", "fsync", "rename", "kill", "torn"]
FORMS = [(kind, False) for kind in KINDS] + [(kind, True) for kind in ("eio", "enospc", "short")]
"""Sticky: everything that follows fails too."""
OLD, NEW = "old", "new"


class Scenario:
    """`prepare` makes the old state, `act` saves the new one, `check` says which of the two is there, whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None: ...
    def act(self) -> None: ...
    def check(self) -> str:
        raise NotImplementedError


class Artifact(Scenario):
    def prepare(self) -> None:
        write_artifact(self.folder / "out", SmallModel(1.0, 3000), RECIPE, evidence(1))

    def act(self) -> None:
        write_artifact(self.folder / "out", SmallModel(2.0, 3000), RECIPE, evidence(2))

    def check(self) -> str:
        out = self.folder / "out"
        read_manifest(out)
        value, seed = value_in(out), Evidence.load(out / "evidence.json").seed
        assert value == seed, "weights of one artifact, evidence of the other"
        files.sweep(self.folder, older_than_s=0.0)
        assert [path.name for path in self.folder.iterdir()] == ["out"], "something is left behind"
        return OLD if value == 1.0 else NEW


class FirstArtifact(Artifact):
    """Nothing was there before: afterwards nothing or the whole artifact."""

    def prepare(self) -> None: ...

    def act(self) -> None:
        write_artifact(self.folder / "out", SmallModel(2.0, 3000), RECIPE, evidence(2), replace=False)

    def check(self) -> str:
        if (self.folder / "out").exists():
            return super().check()
        files.sweep(self.folder, older_than_s=0.0)
        assert list(self.folder.iterdir()) == [], "something is left behind"
        return OLD


class File(Scenario):
    def prepare(self) -> None:
        files.atomic_write_bytes(self.folder / "file", b"1" * 5000)

    def act(self) -> None:
        files.atomic_write_bytes(self.folder / "file", b"2" * 9000)

    def check(self) -> str:
        content = (self.folder / "file").read_bytes()
        files.sweep(self.folder, older_than_s=0.0)
        assert [path.name for path in self.folder.iterdir()] == ["file"]
        if content == b"1" * 5000:
            return OLD
        assert content == b"2" * 9000
        return NEW


class LedgerAppend(Scenario):
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.sqlite3")

    def prepare(self) -> None:
        for seed in range(3):
            self.ledger().append(evidence(seed))

    def act(self) -> None:
        self.ledger().append(evidence(3))

    def check(self) -> str:
        with sqlite3.connect(self.folder / "ledger.sqlite3") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        self.ledger().check()
        seeds = sorted(found.seed for found in self.ledger().all())
        assert seeds in ([0, 1, 2], [0, 1, 2, 3])
        self.ledger().append(evidence(4))
        assert len(self.ledger().all()) == len(seeds) + 1, "it can be written again"
        return OLD if len(seeds) == 3 else NEW


class FirstLedger(LedgerAppend):
    """The file is made by the act itself."""

    def prepare(self) -> None: ...

    def act(self) -> None:
        self.ledger().append(evidence(0))

    def check(self) -> str:
        self.ledger().check()
        there = len(self.ledger().all())
        self.ledger().append(evidence(1))
        assert len(self.ledger().all()) == there + 1
        return OLD if there == 0 else NEW


class Cache(Scenario):
    def value(self) -> np.ndarray:
        return np.arange(3000, dtype=np.float32)

    def act(self) -> None:
        found = StepCache(self.folder).arrays("key", lambda: {"a": self.value()})
        assert np.array_equal(found["a"], self.value()), "a wrong value was given back"

    def check(self) -> str:
        cache = StepCache(self.folder)
        found = cache.arrays("key", lambda: {"a": self.value()})
        assert np.array_equal(found["a"], self.value())
        return NEW if cache.hits else OLD


SCENARIOS: dict[str, type[Scenario]] = {
    "artifact": Artifact,
    "first-artifact": FirstArtifact,
    "file": File,
    "ledger": LedgerAppend,
    "first-ledger": FirstLedger,
    "cache": Cache,
}


def disturbed(
    act: Callable[[], None], shim: ctypes.CDLL, at: int, kind: str, sticky: bool, folder: Path
) -> tuple[str, bool]:
    """(how the act ended, whether the fault was reached)."""
    if kind in ("kill", "torn"):
        child = os.fork()
        if child == 0:
            shim.fault_arm(at, KINDS.index(kind), 0, os.fsencode(folder))
            try:
                act()
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            return "killed", True
        assert status == 0, "the child failed by itself"
        return "done", False
    shim.fault_arm(at, KINDS.index(kind), int(sticky), os.fsencode(folder))
    try:
        act()
        ended = "done"
    except HeadwayError as error:
        assert error.mend and "\n" not in str(error), f"no mend: {error}"
        ended = "refused"
    finally:
        seen = shim.fault_disarm()
    return ended, seen >= at


def every(scenario: type[Scenario], shim: ctypes.CDLL, kind: str, sticky: bool, root: Path) -> dict[str, object]:
    """What came of failing the first, the second ... operation of a kind, until one more is not reached."""
    ends: Counter[str] = Counter()
    at, reached = 0, True
    while reached:
        at += 1
        assert at < 1000, "it never ends"
        folder = root / f"{kind}-{sticky:d}-{at}"
        folder.mkdir(parents=True)
        it = scenario(folder)
        it.prepare()
        ended, reached = disturbed(it.act, shim, at, kind, sticky, folder)
        state = it.check()
        assert ended != "done" or state == NEW, f"{kind} at {at}: it said it was done, the old state is there"
        ends[f"{ended}, {state}"] += 1
        shutil.rmtree(folder)
    return {"kind": kind, "sticky": sticky, "sites": at - 1, "ends": ends}


def main() -> None:
    shim = ctypes.CDLL(None)
    shim.fault_arm.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
    shim.fault_disarm.restype = ctypes.c_long
    scenario, root = SCENARIOS[sys.argv[1]], Path(sys.argv[2])
    print(json.dumps([every(scenario, shim, kind, sticky, root) for kind, sticky in FORMS]))


if __name__ == "__main__":
    main()
