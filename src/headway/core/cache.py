"""`StepCache`: results of steps, found again by the content they were made of.

An entry is a folder `<key>/` with `digests.json` (sha256 of every other file) beside what the step wrote. It is built
in a temporary folder and renamed, so it is whole or absent. One process builds an entry while others wait for it;
a process that dies leaves nothing locked (the kernel frees its lock). Entries used longest ago go first when the
cache grows over its limit; one that does not match its digests is dropped and built again.
"""

from __future__ import annotations

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

from headway.core.errors import BadFile, BadInput
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
from headway.core.jsontext import canonical_json, json_text

DIGESTS = "digests.json"
LIMIT_BYTES = 8 << 30
EVICT_EVERY = 32
"""Entries built between two looks at the cache's size."""

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
        from headway import __version__

        return sha256_of(canonical_json([VERSION, __version__, *parts]))

    def folder(self, key: str, build: Callable[[Path], None]) -> Path:
        """The entry's folder; `build(folder)` fills it when it is not there yet. Read it before the next call."""
        entry = self.root / key
        if self._usable(entry):
            self.hits += 1
            return entry
        with self._locked(key):
            if self._usable(entry):  # another process built it meanwhile
                self.hits += 1
                return entry
            self.misses += 1
            self._build(entry, build)
        if self.misses % EVICT_EVERY == 0:
            self._evict(keep=key)
        return entry

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        """Fill a temporary folder and rename it. Not fsynced: what a power cut tears, the digests find."""
        with explained(entry):
            new = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
            try:
                build(new)
                digests = {name: sha256_file(new / name) for name in tree_files(new)}
                (new / DIGESTS).write_text(json_text(digests))
                new.rename(entry)
            finally:
                if new.exists():
                    remove(new)

    def json(self, key: str, build: Callable[[], Any]) -> Any:
        """A JSON value."""

        def write(folder: Path) -> None:
            (folder / "value.json").write_text(json_text(build()))

        return read_json(self.folder(key, write) / "value.json")

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
        """Whether the entry is there and whole; marks it as used just now, drops it when it is damaged."""
        if not entry.is_dir():
            return False
        try:
            digests = read_json(entry / DIGESTS, limit=16 << 20)
            whole = isinstance(digests, dict) and set(tree_files(entry)) == {*digests, DIGESTS}
            whole = whole and all(sha256_file(entry / name) == digest for name, digest in digests.items())
        except (BadFile, BadInput, OSError):
            whole = False
        if whole:
            with suppress(OSError):
                os.utime(entry)
            return True
        with suppress(OSError):
            remove(entry)
        return False

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        locks = make_folder(self.root / "locks")
        with explained(locks):
            descriptor = os.open(locks / key, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):
                (locks / key).unlink()
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

    def _evict(self, keep: str) -> None:
        """Remove what was used longest ago until the cache is within its limit; never `keep`, nor what is in use."""
        entries = self._entries()
        total = sum(size for _, _, size in entries)
        for used, path, size in entries:
            if total <= self.limit_bytes:
                return
            if path.name == keep or time.time() - used < 60.0:
                continue
            with suppress(OSError):
                remove(path)
                total -= size
