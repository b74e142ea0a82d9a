"""Files that are whole or absent: temporary names, fsync, rename; the user's cache and state folders; digests.

Every write of the project goes through here, so that a crash, a full disk or a pulled plug leaves the old content or
the new one, never a mixture. Errors of the operating system leave as `HeadwayError` with the mend.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headway.core.errors import BadFile, BadInput, HeadwayError, Lacking
from headway.core.jsontext import json_text, parse_json

CHUNK = 1 << 20
TEMPORARY = ".tmp-"
"""Within the name of a file until it is whole."""
STALE_S = 60.0
"""A temporary name younger than this is never swept, whoever holds it."""

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_OS_ERROR = re.compile(r"os error (\d+)")
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_WRONG_PATH = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ELOOP,
}


def explain(error: OSError, path: str | Path) -> HeadwayError:
    """The error a user can act on for an `OSError` met while working on `path`."""
    named = error.filename if isinstance(error.filename, str) else str(path)
    where = path if TEMPORARY in named else named
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in NO_SPACE:
        return Lacking(f"{path}: {reason}", "free disk space there or choose another folder")
    if error.errno in _NOT_ALLOWED:
        return BadInput(f"{where}: {reason}", "choose a folder you may write, or set HEADWAY_HOME to one")
    if error.errno in _WRONG_PATH:
        return BadInput(f"{where}: {reason}", "check the path")
    return Lacking(f"{path}: {reason}", "the disk failed; check it and run again")


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turns an `OSError` inside, or one that the safetensors library wrapped, into `explain(error, path)`."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error
    except Exception as error:
        number = _OS_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        if number is None:
            raise
        raise explain(OSError(int(number[1]), ""), path) from error


# Folders of the user


def _base(variable: str, fallback: str, under_home: str) -> Path:
    home = os.environ.get("HEADWAY_HOME")
    if home:
        return Path(home).expanduser().absolute() / under_home
    given = os.environ.get(variable, "")
    if given and Path(given).is_absolute():  # the XDG rules ignore a relative path
        return Path(given) / "headway"
    try:
        return Path.home() / fallback / "headway"
    except RuntimeError:
        raise Lacking("this user has no home folder", "set HEADWAY_HOME to a folder you may write") from None


def cache_folder(*parts: str) -> Path:
    """Folder for what can be computed again: HEADWAY_HOME/cache, else XDG_CACHE_HOME/headway. Made if absent."""
    return make_folder(_base("XDG_CACHE_HOME", ".cache", "cache").joinpath(*parts))


def state_folder(*parts: str) -> Path:
    """Folder for what must be kept (ledger, targets): HEADWAY_HOME/state, else XDG_STATE_HOME/headway."""
    return make_folder(_base("XDG_STATE_HOME", ".local/state", "state").joinpath(*parts))


def make_folder(path: str | Path) -> Path:
    """`path` with its parents, made if absent."""
    with explained(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


# Writing


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        written = os.write(descriptor, data[:CHUNK])
        if written == 0:
            raise OSError(errno.EIO, "nothing was written")
        data = data[written:]


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{TEMPORARY}{secrets.token_hex(6)}")


def sweep(folder: Path, name: str = "", older_than_s: float = STALE_S) -> int:
    """Remove temporaries that a killed writer of `folder/name` (any name, when empty) left; returns how many.

    A writer holds a lock on its temporary for as long as it lives, so a name whose lock can be taken is nobody's.
    """
    removed = 0
    for left in folder.glob(f".{glob_escape(name) or '*'}{TEMPORARY}*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(descriptor).st_mtime >= older_than_s:
                    remove(left)
                    removed += 1
            finally:
                os.close(descriptor)
    return removed


def glob_escape(name: str) -> str:
    """`name` with the wildcards of `Path.glob` made literal."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def remove(path: Path) -> None:
    """Remove a file or a whole folder; absent is fine. Never follows a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def atomic_write_bytes(path: str | Path, data: bytes | bytearray | memoryview, *, mode: int = 0o644) -> None:
    """Put `data` at `path`: afterwards, and after any crash, `path` holds all of it or what it held before.

    Raises `Lacking` (disk full or failing) or `BadInput` (path not writable).
    """
    path = Path(path)
    temporary = _temporary(path)
    with explained(path):
        sweep(path.parent, path.name)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _write_all(descriptor, memoryview(data).cast("B"))
            os.fsync(descriptor)
            temporary.rename(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(descriptor)
        _fsync_folder(path.parent)


def check_writable(folder: Path, mend: str) -> None:
    """Raise `BadInput` unless files can be made in `folder` (or where it will be made); leaves nothing behind."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"cannot write in {folder}: {error.strerror}", mend) from None


def check_file(path: Path, mend: str = "choose another file for -o") -> None:
    """Raise `BadInput` unless a file can be written at `path` later; for before long work. Leaves nothing behind."""
    if path.is_dir():
        raise BadInput(f"{path} is a folder", mend)
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path}: there is no folder {path.absolute().parent}", "make it first, or " + mend)
    check_writable(path.absolute().parent, mend)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | Path, value: Any) -> None:
    """`atomic_write_bytes` of `json_text(value)`."""
    atomic_write_bytes(path, json_text(value).encode())


def write_file(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write a new file inside a folder that `atomic_folder` is still building (which fsyncs and names it later)."""
    with explained(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _write_all(descriptor, memoryview(data).cast("B"))
        finally:
            os.close(descriptor)


@contextmanager
def atomic_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Build a folder under a temporary name beside `path` and, when the block ends well, give it that name.

    Everything in it is fsynced first. With `replace` an existing folder is exchanged in one step and then removed;
    without it an existing `path` raises `BadInput` before the block runs. When the block raises, nothing is left.
    """
    path = Path(path)
    if not replace and os.path.lexists(path):
        raise BadInput(f"{path} exists already", "remove it or choose another name")
    make_folder(path.parent)
    temporary = _temporary(path)
    lock = -1
    try:
        with explained(path):
            sweep(path.parent, path.name)
            temporary.mkdir()
            lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield temporary
            fsync_tree(temporary)
            _put(temporary, path, replace)
    finally:
        with suppress(OSError):
            remove(temporary)  # the half-built folder, or after an exchange the old one
        if lock >= 0:
            os.close(lock)
    with explained(path):
        _fsync_folder(path.parent)


def fsync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, itself last. Whoever may read the folder may read its files.

    (The safetensors library writes files that their owner alone may read.)
    """
    mode = folder.stat().st_mode & 0o666
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(Path(root, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_mode & 0o666 != mode:  # some file systems know one mode, and refuse any
                    os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _fsync_folder(Path(root))


def _put(new: Path, path: Path, replace: bool) -> None:
    """Give `new` the name `path`; what was there is afterwards at `new`, still whole."""
    while True:
        try:
            if not replace or not os.path.lexists(path):
                new.rename(path)
            else:
                _exchange(new, path)
            return
        except OSError as error:
            if replace and error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT} and os.path.lexists(new):
                continue  # another process made or removed it meanwhile
            if not replace or error.errno not in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
                raise
        aside = _temporary(path)  # no exchange on this file system: two renames, undone when the second fails
        path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            aside.rename(path)
            raise
        with suppress(OSError):
            remove(aside)
        return


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, "no renameat2 in this C library")
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))


# Reading


def read_bytes(path: str | Path, *, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes; raises `BadFile` for a larger one, `BadInput` for none.

    What is no plain file is `BadInput` too: a pipe or a device may never end.
    """
    path = Path(path)
    with explained(path), os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadInput(f"{path} is no plain file", "give a file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BadFile(path, limit, f"the file is longer than {limit} bytes")
    return data


def read_json(path: str | Path, *, limit: int = 256 << 20) -> Any:
    """Parse a JSON file; raises `BadFile` at the offending byte."""
    return parse_json(read_bytes(path, limit=limit), path)


def read_toml(path: str | Path, *, limit: int = 16 << 20) -> dict[str, Any]:
    """Parse a TOML file; raises `BadInput` that names the line."""
    data = read_bytes(path, limit=limit)
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise BadFile(path, error.start, "the text is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: not TOML: {str(error)[:200]}", "see https://toml.io for the form") from None


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with explained(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(*parts: bytes | str) -> str:
    """Hex digest of parts, each preceded by its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def tree_files(folder: Path) -> list[str]:
    """Relative names (`/` between parts, sorted) of the regular files below `folder`; links raise `BadInput`."""
    names = []
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                names.append(path.relative_to(folder).as_posix())
            elif not stat.S_ISDIR(mode):
                raise BadInput(f"{path} is neither a file nor a folder", "replace links and devices by plain files")
    return sorted(names)


def open_beneath(folder: str | Path, relative: str) -> int:
    """Descriptor for reading the regular file `folder/relative`, which must not leave the folder nor pass a link.

    Raises `BadInput` for absolute names, `..`, links, devices and pipes.
    """
    parts = relative.split("/")
    if relative.startswith("/") or "\\" in relative or "\0" in relative or not all(parts) or {".", ".."} & set(parts):
        raise BadInput(f"{relative!r} is not a plain name inside {folder}", "use relative names without '..'")
    here = -1
    with explained(Path(folder, relative)):
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for index, part in enumerate(parts):
                last = index == len(parts) - 1
                kind = os.O_NONBLOCK if last else os.O_DIRECTORY
                below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=here)
                os.close(here)
                here = below
            if not stat.S_ISREG(os.fstat(here).st_mode):
                raise BadInput(f"{Path(folder, relative)} is not a regular file", "replace it by a plain file")
        except BaseException:
            os.close(here)
            raise
    return here
