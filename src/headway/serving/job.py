"""`Job`: one request as schedulers, the engine and the simulator see it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headway.core.errors import BadInput

if TYPE_CHECKING:
    from headway.serving.prefix import Node

WAITING, PREFILL, DECODE, DONE = range(4)


@dataclass(slots=True, eq=False)
class Job:
    """Schedulers read it; only `State` changes it. Lengths are in tokens, times in seconds."""

    id: int
    arrival: float
    prompt: int
    """Tokens of the prompt as it came, at least 1."""
    most: int
    """Tokens to generate at most (in the simulator: exactly), at least 1."""
    keys: Sequence[Hashable] = ()
    """One key for each full page of the prompt, equal where the tokens are: what prefixes are shared by."""
    deadline: float | None = None
    """When it should be done, where it has a limit."""
    stage: str = ""
    """What kind of call it is, in a workflow: its time is estimated by that."""

    phase: int = WAITING
    target: int = 0
    """Tokens to compute before the next one is sampled: the prompt and, after a preemption, what was generated."""
    done: int = 0
    """Of those, how many are in its pages, while it waits or prefills (waiting: found in the prefix tree)."""
    generated: int = 0
    """Tokens sampled, while it waits or prefills; `Decoding` counts while it decodes."""
    pages: int = 0
    """Pages that hold its tokens, shared ones included."""
    shared: list[Node] = field(default_factory=list)
    """The tree's pages it begins with."""
    busy: bool = False
    """A chunk of it runs now."""
    cancelled: bool = False
    preemptions: int = 0
    matched: int = -1
    """Version of the prefix tree that `done` was read from, while it waits."""

    started: float | None = None
    """When it was first admitted."""
    first: float | None = None
    """When its first token came."""
    finished: float | None = None
    reason: str = ""
    """Why it ended."""

    # `Decoding`'s: what it counts is base + tick.
    done_base: int = 0
    generated_base: int = 0
    grow_tick: int = -1
    end_tick: int = -1
    last: float = 0.0
    last_tick: int = -1

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.most < 1:
            raise BadInput(
                f"request {self.id}: {self.prompt} tokens of prompt and {self.most} to generate", "give at least 1 each"
            )
        self.target = self.prompt

    @property
    def left(self) -> int:
        """Tokens still to compute before it samples, while it waits or prefills."""
        return self.target - self.done
