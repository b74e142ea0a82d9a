"""`StepCache`: results of steps, found again by the content they were made of.

An entry is a folder `<key>/` with `digests.json` (sha256 of every other file) beside what the step wrote. It is built
in a temporary folder and renamed, so it is whole or absent. One process builds an entry while others wait for it;
a process that dies leaves nothing locked (the kernel frees its lock). Entries used longest ago go first when the
cache grows over its limit; one that does not match its digests is dropped and built again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import HeadwayError, Lacking
from headway.core.files import (
    cache_folder,
    explained,
    make_folder,
    read_json,
    remove,
    sha256_file,
    sha256_of,
    tree_files,
)
from headway.core.interrupts import check
from headway.core.jsontext import canonical_json, json_text

DIGESTS = "digests.json"
LIMIT_BYTES = 8 << 30
EVICT_EVERY = 32
"""Entries built between two looks at the cache's size."""

IN_USE_S = 60.0
"""An entry used this lately is not evicted."""

STALE_S = 86_400.0
"""A temporary folder this old was left by a process that died."""

VERSION = 1
"""Part of every key: raise it when what steps write changes."""

Arrays = dict[str, npt.NDArray[Any]]


class StepCache:
    """A folder of entries. Safe for several processes and threads at once."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.root = make_folder(folder or cache_folder("steps"))
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        for left in self.root.glob(".new-*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE_S:
                    remove(left)

    @staticmethod
    def key(*parts: Any) -> str:
        """Hex digest of JSON-able parts: what the result depends on, the name of the step first."""
        from headway.core.version import __version__

        return sha256_of(canonical_json([VERSION, __version__, *parts]))

    def folder(self, key: str, build: Callable[[Path], None]) -> Path:
        """The entry's folder; `build(folder)` fills it when it is not there yet. Read it before the next call."""
        check()
        entry = self.root / key
        if self._usable(entry):
            self.hits += 1
            return entry
        with self._locked(key):
            if self._usable(entry):  # another process built it meanwhile
                self.hits += 1
                return entry
            self.misses += 1
            self._build_in_room(entry, build)
        if (self.misses - 1) % EVICT_EVERY == 0:  # at a run's first one too: many runs build few each
            self._evict(self.limit_bytes, keep=key)
        return entry

    def _build_in_room(self, entry: Path, build: Callable[[Path], None]) -> None:
        """Build; when the disk is full and the cache holds something old, make room with it and build again."""
        try:
            self._build(entry, build)
        except Lacking as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or not self._evict(0, keep=entry.name):
                raise
            self._build(entry, build)

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        """Fill a temporary folder and rename it. Not fsynced: what a power cut tears, the digests find."""
        with explained(entry):
            new = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
            try:
                build(new)
                digests = {name: sha256_file(new / name) for name in tree_files(new)}
                (new / DIGESTS).write_text(json_text(digests))
                self._drop(entry)
                new.rename(entry)
            finally:
                if new.exists():
                    remove(new)

    def _drop(self, entry: Path) -> None:
        """Take a damaged entry out of the way at once, then remove it. Only under the entry's lock."""
        if entry.exists():
            aside = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
            entry.rename(aside)
            remove(aside)

    def json(self, key: str, build: Callable[[], Any]) -> Any:
        """A JSON value."""

        def write(folder: Path) -> None:
            (folder / "value.json").write_text(json_text(build()))

        return read_json(self.folder(key, write) / "value.json")

    def holds(self, key: str) -> bool:
        """Whether an entry is there and whole, so that nothing would be built for it."""
        return self._usable(self.root / key)

    def arrays(self, key: str, build: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> Arrays:
        """Named numpy arrays, bit for bit."""
        from safetensors.numpy import load_file, save_file

        def write(folder: Path) -> None:
            made = {name: np.ascontiguousarray(array) for name, array in build().items()}
            save_file(made, folder / "arrays.safetensors")

        return dict(load_file(self.folder(key, write) / "arrays.safetensors"))

    def size_bytes(self) -> int:
        return sum(size for _, _, size in self._entries())

    def _usable(self, entry: Path) -> bool:
        """Whether the entry is there and whole; marks it as used just now."""
        if not entry.is_dir():
            return False
        try:
            digests = read_json(entry / DIGESTS, limit=16 << 20)
            whole = isinstance(digests, dict) and set(tree_files(entry)) == {*digests, DIGESTS}
            whole = whole and all(sha256_file(entry / name) == digest for name, digest in digests.items())
        except (HeadwayError, OSError):
            whole = False
        if whole:
            with suppress(OSError):
                os.utime(entry)
        return whole

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the key's lock. Its file goes with its last holder, so one that was removed meanwhile is taken anew."""
        path = make_folder(self.root / "locks") / key
        while True:
            with explained(path):
                descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _same(descriptor, path):
                    yield
                    return
            finally:
                with suppress(OSError):
                    if _same(descriptor, path):
                        path.unlink()
                os.close(descriptor)

    def _entries(self) -> list[tuple[float, Path, int]]:
        """(last use, folder, bytes) of every entry, longest unused first."""
        found = []
        for path in self.root.iterdir():
            if path.name == "locks" or path.name.startswith("."):
                continue
            with suppress(OSError):
                size = sum((path / name).stat().st_size for name in tree_files(path))
                found.append((path.stat().st_mtime, path, size))
        return sorted(found)

    def _evict(self, limit_bytes: int, keep: str) -> int:
        """Remove what was used longest ago until the cache is within the limit; gives the bytes removed.

        Never `keep`, nor what was used within the last minute and may be being read.
        """
        entries = self._entries()
        total = sum(size for _, _, size in entries)
        removed = 0
        for used, path, size in entries:
            if total - removed <= limit_bytes:
                break
            if path.name == keep or time.time() - used < IN_USE_S:
                continue
            with suppress(OSError):
                remove(path)
                removed += size
        return removed


def _same(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
