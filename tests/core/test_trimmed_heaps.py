"""Freed memory goes back to the system, and what is still held stays as it was."""

from __future__ import annotations

import subprocess
import sys

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
