"""The step cache: builds once, whatever runs beside it; never gives back what is damaged; stays within its limit."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.cache import StepCache
from headway.core.errors import Lacking


@given(st.lists(st.one_of(st.integers(), st.text(max_size=3), st.booleans()), max_size=4), st.data())
def test_a_key_depends_on_every_part(parts: list[object], data: st.DataObject) -> None:
    assert StepCache.key(*parts) == StepCache.key(*parts)
    other = data.draw(st.lists(st.one_of(st.integers(), st.text(max_size=3), st.booleans()), max_size=4))
    if [(type(p), p) for p in parts] != [(type(p), p) for p in other]:
        assert StepCache.key(*parts) != StepCache.key(*other)


def test_a_result_is_built_once_and_read_back_bit_for_bit(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    values = {"a": np.arange(7, dtype=np.float16), "b": np.array([[1, 255]], np.uint8)}
    for _ in range(2):
        found = cache.arrays("k", lambda: values)
        assert all(
            np.array_equal(found[name], values[name]) and found[name].dtype == values[name].dtype for name in values
        )
    assert (cache.hits, cache.misses) == (1, 1)
    assert cache.json("j", lambda: {"x": [1, None]}) == {"x": [1, None]}


@pytest.mark.parametrize("damage", ["flip", "cut", "add", "drop", "digests"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    cache = StepCache(tmp_path)
    cache.arrays("k", lambda: {"a": np.ones(100)})
    file = tmp_path / "k" / "arrays.safetensors"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "add":
        (tmp_path / "k" / "more").write_text("x")
    elif damage == "drop":
        file.unlink()
    else:
        (tmp_path / "k" / "digests.json").write_text("{")
    assert cache.arrays("k", lambda: {"a": np.zeros(100)})["a"].sum() == 0
    assert cache.misses == 2


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    with pytest.raises(RuntimeError):
        cache.json("k", lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert not (tmp_path / "k").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]
    assert cache.json("k", lambda: 3) == 3


def test_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.core.cache.EVICT_EVERY", 1)
    cache = StepCache(tmp_path, limit_bytes=5000)
    for number in range(4):
        cache.arrays(f"k{number}", lambda: {"a": np.zeros(200)})
        for entry in tmp_path.glob("k*"):
            os.utime(entry, (time.time() - 1000 + number, time.time() - 1000 + int(entry.name[1:])))
    assert cache.size_bytes() <= 5000
    assert not (tmp_path / "k0").exists()
    assert (tmp_path / "k3").exists()


def test_many_runs_that_build_little_stay_within_the_limit(tmp_path: Path) -> None:
    for run in range(10):
        cache = StepCache(tmp_path, limit_bytes=10_000)
        for number in range(3):
            cache.arrays(f"k{run}-{number}", lambda: {"a": np.zeros(200)})
        for entry in tmp_path.glob("k*"):
            os.utime(entry, (0, time.time() - 3600))
    assert cache.size_bytes() <= 10_000 + 3 * 2_000


def _build_slowly(root: str, log: str) -> None:
    def build() -> int:
        with Path(log).open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        return 7

    assert StepCache(Path(root)).json("k", build) == 7


def test_one_process_builds_while_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log = str(tmp_path / "log")
    workers = [context.Process(target=_build_slowly, args=(str(tmp_path / "cache"), log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert Path(log).read_text() == "built\n"


def test_a_full_disk_makes_the_cache_give_up_what_is_old(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    cache.json("old", lambda: 1)
    cache.json("young", lambda: 2)
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "old", (an_hour_ago, an_hour_ago))
    tries = []

    def build(folder: Path) -> None:
        tries.append(folder)
        if (tmp_path / "old").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (folder / "a").write_bytes(b"1")

    assert (cache.folder("new", build) / "a").read_bytes() == b"1"
    assert len(tries) == 2
    assert (tmp_path / "young").exists(), "what may be being read stays"

    def never(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(Lacking, match="free disk space"):
        cache.folder("hopeless", never)


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    held = threading.Event()
    inside = []

    def other() -> None:
        with cache._locked("k"):
            inside.append(len(inside))

    with cache._locked("k"):
        waiting = [threading.Thread(target=other) for _ in range(3)]
        for thread in waiting:
            thread.start()
        held.wait(0.05)
        assert not inside
    for thread in waiting:
        thread.join(20)
    assert sorted(inside) == [0, 1, 2]
    assert list((tmp_path / "locks").iterdir()) == []


def test_readers_of_a_damaged_entry_build_it_once_and_all_get_it_right(tmp_path: Path) -> None:
    StepCache(tmp_path).arrays("k", lambda: {"a": np.arange(1000)})
    (tmp_path / "k" / "arrays.safetensors").write_bytes(b"garbage")
    caches = [StepCache(tmp_path) for _ in range(8)]
    found: list[bool] = []

    def read(cache: StepCache) -> None:
        found.append(bool(np.array_equal(cache.arrays("k", lambda: {"a": np.arange(1000)})["a"], np.arange(1000))))

    threads = [threading.Thread(target=read, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 8
    assert sum(cache.misses for cache in caches) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".new-")] == []


def test_what_a_killed_builder_left_is_removed_after_a_day(tmp_path: Path) -> None:
    left, fresh = tmp_path / ".new-dead", tmp_path / ".new-alive"
    for folder in (left, fresh):
        folder.mkdir()
    long_ago = time.time() - 2 * 86_400
    os.utime(left, (long_ago, long_ago))
    StepCache(tmp_path)
    assert fresh.exists() and not left.exists()
