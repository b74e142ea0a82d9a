"""Progress of long work, told to whoever listens; silent unless the command line plugs a bar in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Task:
    """One piece of work under way: `advance` as it goes; `say` for one line worth knowing."""

    def advance(self, steps: float = 1) -> None:
        """Tell that `steps` more of the total are done."""

    def say(self, text: str) -> None:
        """Replace the task's description."""


class Progress:
    """The silent listener, and the base of those that show something."""

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        """A task named `what` of `total` steps (None: unknown)."""
        yield Task()

    def track(self, items: Iterable[T], what: str, total: float | None = None) -> Iterator[T]:
        """Iterate over `items`, advancing a task by one for each."""
        with self.task(what, total if total is not None else _length(items)) as task:
            for item in items:
                yield item
                task.advance()

    def note(self, text: str) -> None:
        """A line that stays on the screen."""


def _length(items: Iterable[T]) -> float | None:
    return len(items) if isinstance(items, Sized) else None
