"""`Decoding`: the requests that generate, advanced together.

A step in which all of them get a token costs the same for two as for two hundred: one clock ticks, and what each
request has is its own base plus the clock. Requests that need a page or end at a certain tick wait in the bucket of
that tick. So a million requests can be simulated with the objects that the engine runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.serving.job import Job


class Decoding:
    """Members in the order they joined. `pages` below are a request's own and shared pages together."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._members: dict[int, Job] = {}
        self._grow: dict[int, dict[int, Job]] = {}
        self._end: dict[int, dict[int, Job]] = {}
        self._joined: dict[int, Job] = {}  # since the last tick: their last token is their own
        self._needed: int | None = 0  # members that need a page at this tick; None: to be counted
        self.tick = 0
        self.tick_time = 0.0
        self.context = 0

    @property
    def count(self) -> int:
        return len(self._members)

    @property
    def pages_needed(self) -> int:
        if self._needed is None:
            tick, members, growing = self.tick, self._members, self._grow.get(self.tick)
            self._needed = sum(j.grow_tick == tick and j.id in members for j in growing.values()) if growing else 0
        return self._needed

    def __iter__(self) -> Iterator[Job]:
        return iter(self._members.values())

    def __contains__(self, job: Job) -> bool:
        return job.id in self._members

    def context_of(self, job: Job) -> int:
        return job.done_base + self.tick

    def generated(self, job: Job) -> int:
        return job.generated_base + self.tick

    def needs_page(self, job: Job) -> bool:
        return job.id in self._members and job.grow_tick == self.tick

    def last_time(self, job: Job) -> float:
        """When its newest token came."""
        return job.last if job.last_tick == self.tick else self.tick_time

    def join(self, job: Job, now: float) -> None:
        """A request whose prompt is done and whose first token (of this stay) came now."""
        tick = self.tick
        self._members[job.id] = job
        self.context += job.done
        job.done_base = job.done - tick
        job.generated_base = job.generated - tick
        job.last, job.last_tick = now, tick
        self._joined[job.id] = job
        self._grow_at(job, job.pages * self._page_tokens - job.done_base)
        self._end_at(job, job.most - job.generated_base)

    def leave(self, job: Job) -> None:
        """Take it out; `done` and `generated` hold again what it has."""
        del self._members[job.id]
        job.done, job.generated = self.context_of(job), self.generated(job)
        self.context -= job.done
        if job.grow_tick == self.tick and self._needed is not None:
            self._needed -= 1
        job.grow_tick = job.end_tick = -1
        if job.last_tick != self.tick:
            job.last, job.last_tick = self.tick_time, self.tick

    def grow(self) -> int:
        """Everyone who needs a page to get a token has one now; returns how many did."""
        self._needed = 0
        growing = self._grow.pop(self.tick, None)
        if not growing:
            return 0
        tick, members, grown = self.tick, self._members, 0
        again = tick + self._page_tokens
        bucket = self._grow.setdefault(again, {})
        for job in growing.values():
            if job.grow_tick == tick and job.id in members:
                job.pages += 1
                job.grow_tick = again
                bucket[job.id] = job
                grown += 1
        return grown

    def grow_some(self, jobs: Sequence[Job]) -> int:
        """As `grow`, for some of them."""
        grown = 0
        for job in jobs:
            if self.needs_page(job):
                job.pages += 1
                self._grow_at(job, job.grow_tick + self._page_tokens)
                grown += 1
        self._needed = None
        return grown

    def leap(self, times: Sequence[float], gaps: list[tuple[float, int]]) -> int:
        """Everyone got a token at each of these times, and none was its last; the pages that took."""
        pages = 0
        for at in times:
            self._step(at, gaps)
            pages += self.grow()
        return pages

    def calm(self, free: int) -> int:
        """Tokens that everyone can get, taking of `free` pages, until somebody is at its end or pages may run out.

        The token of that end is included. So few that nobody needs two pages: then a page for each is enough.
        """
        scarce = free < len(self._members)
        for ahead in range(1, self._page_tokens):
            tick = self.tick + ahead
            ends, grows = self._end.get(tick), self._grow.get(tick) if scarce else None
            if ends and any(job.end_tick == tick and job.id in self._members for job in ends.values()):
                return ahead
            if grows and any(job.grow_tick == tick and job.id in self._members for job in grows.values()):
                return ahead
        return self._page_tokens

    def advance(self, now: float, gaps: list[tuple[float, int]]) -> list[Job]:
        """Everyone got a token; returns those at their end. `gaps` takes (seconds since the last one, how many)."""
        self._step(now, gaps)
        ending = self._end.pop(self.tick, None)
        if not ending:
            return []
        tick, members = self.tick, self._members
        return [job for job in ending.values() if job.end_tick == tick and job.id in members]

    def _step(self, now: float, gaps: list[tuple[float, int]]) -> None:
        count = len(self._members)
        own = 0
        if self._joined:
            for job in self._joined.values():
                if job.last_tick == self.tick and job.id in self._members:
                    gaps.append((now - job.last, 1))
                    own += 1
            self._joined.clear()
        if count > own:
            gaps.append((now - self.tick_time, count - own))
        self._grow.pop(self.tick, None)
        self.tick += 1
        self.tick_time = now
        self.context += count
        self._needed = None

    def advance_some(self, jobs: Sequence[Job], now: float, gaps: list[tuple[float, int]]) -> list[Job]:
        """As `advance`, for some of them."""
        ended = []
        for job in jobs:
            gaps.append((now - self.last_time(job), 1))
            job.done_base += 1
            job.generated_base += 1
            job.last, job.last_tick = now, self.tick
            self._joined[job.id] = job
            self.context += 1
            self._grow_at(job, job.grow_tick - 1)
            self._end_at(job, job.end_tick - 1)
            if job.end_tick == self.tick:
                ended.append(job)
        return ended

    def _grow_at(self, job: Job, tick: int) -> None:
        job.grow_tick = tick
        self._grow.setdefault(tick, {})[job.id] = job
        if tick == self.tick:
            self._needed = None

    def _end_at(self, job: Job, tick: int) -> None:
        job.end_tick = tick
        self._end.setdefault(tick, {})[job.id] = job
