"""`Request` and `Event`: what goes into the engine, and what comes out of each of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from headway.core.errors import BadInput
from headway.llm.runtime import F32
from headway.llm.sampling import Sampling

MOST_LOGPROBS = 20
GREEDY = Sampling()


class Constraint(Protocol):
    """What an answer must look like (a grammar, a JSON schema)."""

    def mask(self, logits: F32) -> F32:
        """logits (vocab,) -> the same with -inf where a token may not come next."""
        ...

    def accept(self, token: int) -> bool:
        """The token was taken; True when the answer is complete."""
        ...


@dataclass(frozen=True)
class Request:
    """One answer wanted. Raises `BadInput` for values outside their bounds."""

    tokens: Sequence[int]
    """The prompt, ids of the model's vocabulary."""
    max_tokens: int
    sampling: Sampling = GREEDY
    ignore_end: bool = False
    """Go on past end tokens (benchmarks)."""
    logprobs: int | None = None
    """Give the log-probability of each token, and of this many most likely ones."""
    constraint: Constraint | None = None
    salt: str = ""
    """Only requests with the same salt share pages."""
    deadline: float | None = None
    stage: str = ""
    """See `Job.stage`."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadInput(f"max_tokens={self.max_tokens}", "it must be at least 1")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise BadInput(f"logprobs={self.logprobs}", f"give 0..{MOST_LOGPROBS}")


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities under the model (before temperature and constraints)."""

    chosen: float
    top: tuple[tuple[int, float], ...]


class Event(NamedTuple):
    """A token of one request, and why the request ended if it did. `token` None: it ended without one."""

    id: int
    token: int | None
    finish: str = ""
    """"": goes on; "end": an end token; "length": a limit; "cancelled"; anything else: an error, in words."""
    logprobs: Logprobs | None = None


FINISHES = ("", "end", "length", "cancelled")
