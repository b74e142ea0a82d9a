"""Resident memory of this process: now, and at its peak inside a block."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from headway.core.errors import Lacking

if TYPE_CHECKING:
    from types import TracebackType

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status("VmRSS")


def reset_resident_peak() -> bool:
    """Let the kernel's peak begin anew at what is resident now; false where that is not allowed."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class ResidentPeak:
    """The most memory this process had resident inside the block, and over what it had at its start.

    The kernel's own mark where it may be reset; else a thread looks every millisecond (`exact` is false then).
    """

    before_bytes: int = 0
    peak_bytes: int = 0
    exact: bool = False

    @property
    def over_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes

    def __enter__(self) -> Self:
        self.exact = reset_resident_peak()
        self.before_bytes = self.peak_bytes = resident_bytes()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if not self.exact:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self.exact:
            self.peak_bytes = max(self.before_bytes, _status("VmHWM"))
        else:
            self._watcher.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, resident_bytes())
            if self._done.wait(0.001):
                self.peak_bytes = max(self.peak_bytes, resident_bytes())
                return


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise Lacking(f"{_STATUS} has no {name}", "memory is measured on Linux only")
