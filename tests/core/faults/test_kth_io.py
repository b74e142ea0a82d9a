"""The k-th file operation fails, for every k: afterwards the old or the new is there, whole, and work goes on.

Errors, full disks, short writes, failed fsyncs and renames, death before any operation and in the middle of a write;
once, or for all that follows. The failing is done by a C library preloaded under a child, so that SQLite's and Rust's
own calls fail like Python's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FEWEST = {"artifact": 30, "first-artifact": 25, "file": 5, "ledger": 40, "first-ledger": 60, "cache": 10}
"""Operations of any kind that each scenario is known to have, at least."""
NEVER = {("ledger", "rename"), ("first-ledger", "rename"), ("cache", "fsync")}
"""SQLite never renames; the cache is not fsynced: its digests find what a power cut tears."""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled once."""
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "shim.c"), "-ldl"], check=True)
    return library


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs cost nothing there."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("scenario", FEWEST)
def test_every_operation_may_fail(shim: Path, fast_folder: Path, scenario: str) -> None:
    found = subprocess.run(
        [sys.executable, HERE / "breakable.py", scenario, fast_folder],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    results = json.loads(found.stdout)
    for result in results:
        print(scenario, result)
        assert (result["sites"] == 0) == ((scenario, result["kind"]) in NEVER)
    sites = {result["kind"]: result["sites"] for result in results if not result["sticky"]}
    assert sites["eio"] >= FEWEST[scenario]
    assert sites["kill"] >= FEWEST[scenario]
