"""`Admission`: the one place that says whether a request may come in, from what it costs and what is before it.

The wait for a first token is predicted from the fitted iteration time and corrected by how long the same work really
took. A request whose wait would exceed the bound is turned away with the seconds after which it would not.
"""

from __future__ import annotations

from dataclasses import dataclass

from headway.hardware.iteration_time import IterationTime, Load
from headway.serving.http.errors import ApiError
from headway.serving.messages import Ready, Stats

MEMORY = 0.98
"""What is left of the sums over the past at each new entry: some 50 count."""
MOST_WAITING = 1024


@dataclass(slots=True)
class Ticket:
    """One answer that came in."""

    prompt: int
    most: int
    work_s: float
    """Predicted time of the machine, in a full batch."""
    generated: int = 0


class Admission:
    """For one engine. `bound_s`: the longest wait that is promised."""

    def __init__(self, ready: Ready, bound_s: float) -> None:
        self._cost = cost = IterationTime.from_json(ready.cost)
        self.bound_s = bound_s
        self._page_tokens = ready.page_tokens
        self._places = ready.max_seqs
        self._tokens = ready.pages * ready.page_tokens
        chunk = min(256, ready.context)
        self._prompt_s = cost(Load(chunk, chunk * chunk / 2, 0, 0, 1, 1)) / chunk
        batch = self._places
        context = batch * min(ready.context, self._tokens // batch) // 2
        self._token_s = cost(Load(batch, 0.0, batch, context, batch, batch)) / batch
        self._tickets: dict[int, Ticket] = {}
        self._work_s = 0.0
        self._unread = 0  # prompt tokens of those without a first token
        self._held = 0  # tokens that those who are in may come to hold
        self._taken, self._asked = 1.0, 1.0  # tokens that answers took, and their max_tokens
        self._real_s, self._predicted_s = 1e-3, 1e-3

    @property
    def count(self) -> int:
        """Answers under way or waiting."""
        return len(self._tickets)

    @property
    def slowness(self) -> float:
        """Real over predicted time."""
        return self._real_s / self._predicted_s

    def wait_s(self, answers: int = 1) -> float:
        """Predicted seconds until the last of so many new answers is begun."""
        count = len(self._tickets)
        before = self._unread * self._prompt_s
        mean_held = self._held / count if count else 0.0
        places = min(self._places, int(self._tokens / mean_held) if mean_held else self._places)
        leave_first = count + answers - max(places, 1)
        if count and leave_first > 0:
            before = max(before, leave_first * self._work_s / count)
        return before * self.slowness

    def check(self, prompts: int, answers: int = 1) -> None:
        """Raise 429 when `answers` with so many tokens of prompts would wait longer than the bound."""
        if not self._tickets:
            return  # an empty engine takes anything that it can hold
        wait = self.wait_s(answers)
        over = wait - self.bound_s
        if over > 0 or len(self._tickets) + answers > self._places + MOST_WAITING:
            raise ApiError(
                429,
                f"the queue is full: a wait of {wait:.1f} s is predicted, the limit is {self.bound_s:.1f} s",
                code="queue_full",
                retry_after_s=max(over, wait / 4),
            )

    def enter(self, prompt: int, most: int) -> Ticket:
        share = self._taken / self._asked
        ticket = Ticket(prompt, most, prompt * self._prompt_s + share * most * self._token_s)
        self._tickets[id(ticket)] = ticket
        self._work_s += ticket.work_s
        self._unread += prompt
        self._held += prompt + most
        return ticket

    def token(self, ticket: Ticket) -> None:
        """It got a token."""
        if not ticket.generated:
            self._unread -= ticket.prompt
        ticket.generated += 1

    def leave(self, ticket: Ticket) -> None:
        """It is over, whatever it got."""
        if self._tickets.pop(id(ticket), None) is None:
            return
        self._work_s = max(self._work_s - ticket.work_s, 0.0)
        self._held -= ticket.prompt + ticket.most
        if not ticket.generated:
            self._unread -= ticket.prompt
            return
        self._taken = MEMORY * self._taken + ticket.generated
        self._asked = MEMORY * self._asked + ticket.most

    def observe(self, stats: Stats) -> None:
        """How long a step took, beside what was predicted."""
        if not stats.rows:
            return
        chunk = max(stats.rows - stats.decoding, 0)
        rows = stats.decoding + bool(chunk)
        context = stats.held * self._page_tokens
        predicted = self._cost(Load(stats.rows, chunk * context / max(rows, 1), stats.decoding, context, rows, rows))
        self._real_s = MEMORY * self._real_s + stats.seconds
        self._predicted_s = MEMORY * self._predicted_s + predicted
