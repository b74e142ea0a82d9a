"""Released pages leave memory and come back unchanged."""

from __future__ import annotations

import mmap
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
