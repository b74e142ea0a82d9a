"""What the verbs share: a session with progress bars on standard error and JSON on standard output."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headway.core.errors import BadInput
from headway.core.progress import Progress, Task

if TYPE_CHECKING:
    from headway.core.target import Target

SCHEMA = 1
PATIENCE_S = 2.0


def typed(verb: str) -> str:
    """The command line as it could be typed again; empty where Python code called the verb."""
    return shlex.join(["headway", *sys.argv[1:]]) if sys.argv[1:2] == [verb] else ""


class Session:
    """One call of a verb: where progress goes and how the answer leaves."""

    def __init__(
        self,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        threads: int = 0,
        seed: int = 0,
        device: str = "cpu",
        allow_code: bool = False,
    ) -> None:
        if verbose:
            os.environ["HEADWAY_TRACEBACK"] = "1"
        self.as_json = as_json
        self.seed = seed
        self.allow_code = allow_code
        self.threads = threads or len(os.sched_getaffinity(0))
        self.device = check_device(device)
        self.progress: Progress = Progress() if quiet else BarProgress(plain=not sys.stderr.isatty())

    def emit(
        self, document: Mapping[str, Any], text: str, target: Target | None = None, *, one_line: bool = False
    ) -> None:
        """Print the JSON document (with the keys every verb has) or the text for people.

        Without a target the document names the machine as it is known without measuring it.
        """
        if not self.as_json:
            print(text)
            return
        from headway.core.version import __version__
        from headway.hardware.machine import read_machine

        here = target or read_machine()
        shared: dict[str, Any] = {
            "schema": SCHEMA,
            "headway": __version__,
            "target": {"name": here.name, "fingerprint": here.fingerprint},
            "seed": self.seed,
        }
        indent = None if one_line else 2
        json.dump({**shared, **document}, sys.stdout, indent=indent, allow_nan=False, default=str)
        print(flush=one_line)


def check_device(device: str) -> str:
    """The device's name, checked; raises `BadInput` for another spelling and `Lacking` for one that is not there."""
    import re

    if device == "cpu":
        return device
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise BadInput(f"--device {device!r} is no device", "write cpu, cuda or cuda:0")
    from headway.core.errors import Lacking, need_extra

    try:
        import torch
    except ImportError:
        raise need_extra("torch", "torch") from None
    if not torch.cuda.is_available() or int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise Lacking(f"--device {device}: torch sees {torch.cuda.device_count()} GPUs", "use --device cpu")
    return device


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of plain text; a column whose cells are all numbers is aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max([len(title), *(len(row[i]) for row in cells)]) for i, title in enumerate(head)]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *(line(row) for row in cells)])


class _BarTask(Task):
    def __init__(self, bars: Any, key: Any) -> None:
        self.bars, self.key = bars, key

    def advance(self, steps: float = 1) -> None:
        self.bars.advance(self.key, steps)

    def say(self, text: str) -> None:
        self.bars.update(self.key, description=text)


class _LineTask(Task):
    """Says itself in one line, once it has taken longer than anybody waits without asking."""

    def __init__(self, what: str) -> None:
        self.what, self.began, self.said = what, time.monotonic(), False

    def advance(self, steps: float = 1) -> None:
        if not self.said and time.monotonic() - self.began > PATIENCE_S:
            self.said = True
            print(f"headway: {self.what} ...", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        self.advance(0)


class BarProgress(Progress):
    """Bars with an estimate of what is left; where there is no terminal, one line for each task that takes long."""

    def __init__(self, plain: bool = False) -> None:
        self.plain = plain
        self.bars: Any = None
        self.depth = 0

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        if self.plain:
            task = _LineTask(what)
            yield task
            task.advance(0)
            return
        if self.bars is None:
            self.bars = _bars()
        if self.depth == 0:
            self.bars.start()
        self.depth += 1
        key = self.bars.add_task(what, total=total)
        try:
            yield _BarTask(self.bars, key)
        finally:
            self.bars.remove_task(key)
            self.depth -= 1
            if self.depth == 0:
                self.bars.stop()

    def note(self, text: str) -> None:
        if self.depth and self.bars is not None:
            self.bars.console.print(text, markup=False, highlight=False)
        else:
            print(f"headway: {text}", file=sys.stderr, flush=True)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Rich

    return Rich(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
