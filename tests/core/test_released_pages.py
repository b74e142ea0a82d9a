"""Released pages leave memory and come back unchanged; freed heaps go back too."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np

from headway.core.pages import release
from headway.core.resident import resident_bytes


def test_released_pages_leave_memory_and_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "data"
    values = np.random.default_rng(0).integers(0, 256, 32 << 20, dtype=np.uint8)
    values.tofile(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(mapped, np.uint8, offset=100).reshape(-1, 4)[1:]
    total = int(array.sum(dtype=np.int64))
    before = resident_bytes()
    assert release(array) > 31 << 20
    assert resident_bytes() < before - (24 << 20)
    assert int(array.sum(dtype=np.int64)) == total


def test_what_is_not_mapped_is_left_alone() -> None:
    array = np.arange(100_000)
    assert release(array) == 0
    assert array[-1] == 99_999


PIECES = """
from pathlib import Path
import numpy as np
from headway.core.pages import trim

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

pieces = [np.full(2000, at, float) for at in range(20_000)]  # 320 MB of pieces too small for mappings of their own
kept = pieces[::1000]
del pieces
before = resident()
trim()
assert all((piece == at * 1000).all() for at, piece in enumerate(kept))
print(before - resident())
"""


def test_what_was_freed_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 4096 > 200e6
