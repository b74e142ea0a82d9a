"""`State`: who waits, who runs, who holds which pages. The engine and the simulator both keep their books here.

It is also what a scheduler sees (`View`). Every page is free, held by a request, lent to training or cached in the
prefix tree, and their sum never changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime
from headway.serving.decoding import Decoding
from headway.serving.job import DECODE, DONE, PREFILL, WAITING, Job
from headway.serving.prefix import Node, PrefixTree
from headway.serving.schedulers.base import ALL, SLO, Batch, Limits, Plan, never_fits
from headway.serving.tuning import Tuning

LOOK_AHEAD = 16
"""Waiting requests whose prefix is looked up again when the tree has changed."""


class PageOwner(Protocol):
    """Who really has the pages: the engine's sequences. The simulator has none."""

    def admit(self, job: Job, blocks: Sequence[Any]) -> None:
        """It begins with these shared pages."""
        ...

    def keys(self, job: Job) -> Sequence[Hashable]:
        """The keys of its full pages, of the prompt and of what was generated."""
        ...

    def block(self, job: Job, index: int) -> Any:
        """Page `index` of its sequence, for the tree to keep."""
        ...

    def release(self, job: Job) -> None:
        """It holds no page any more."""
        ...


class _Nobody:
    def admit(self, job: Job, blocks: Sequence[Any]) -> None:
        pass

    def keys(self, job: Job) -> Sequence[Hashable]:
        return job.keys

    def block(self, job: Job, index: int) -> Any:
        return None

    def release(self, job: Job) -> None:
        pass


class State:
    """One engine's requests and pages. `gaps` collects (seconds between two tokens of a request, how often)."""

    def __init__(
        self,
        pages: int,
        page_tokens: int,
        cost: IterationTime,
        limits: Limits | None = None,
        slo: SLO | None = None,
        lanes: Sequence[str] = ("main",),
        prefix: PrefixTree | None = None,
        owner: PageOwner | None = None,
        order: Callable[[Job, float], float] | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """order: smaller is served first (now is given); None: as they came. tuning: a job beside inference."""
        if pages < 1 or page_tokens < 1:
            raise BadInput(f"{pages} pages of {page_tokens} tokens", "give at least one of each")
        self.total_pages, self.page_tokens = pages, page_tokens
        self.cost, self.limits, self.slo = cost, limits or Limits(), slo or SLO()
        self.prefix, self.tuning = prefix, tuning
        self.lent = 0
        self.now = 0.0
        self.decoding = Decoding(page_tokens)
        self.idle = frozenset(lanes)
        self.gaps: list[tuple[float, int]] = []
        self._free = pages
        self._waiting: deque[Job] = deque()
        self._prefilling: dict[int, Job] = {}
        self._late: list[Job] = []  # prompts that were done while the decodes ran: they join after them
        self._decodes_run = False
        self._owner = owner or _Nobody()
        self._order = order

    # What a scheduler sees

    @property
    def waiting(self) -> Sequence[Job]:
        return self._waiting

    @property
    def prefilling(self) -> Sequence[Job]:
        return tuple(self._prefilling.values())

    @property
    def seqs(self) -> int:
        return self.decoding.count + len(self._prefilling) + len(self._late)

    @property
    def holders(self) -> list[Job]:
        """Requests that hold pages."""
        return [*self.decoding, *self._prefilling.values(), *self._late]

    @property
    def free_pages(self) -> int:
        return self._free + (self.prefix.evictable if self.prefix else 0)

    def pages_for(self, job: Job, tokens: int) -> int:
        needed = -(-tokens // self.page_tokens)
        if self.prefix is not None and job.keys:
            if job.matched != self.prefix.version:  # one from the back of the queue, which `look` did not reach
                self._match(job)
            # Only pages in use come for nothing: an idle one counts as free until somebody takes it.
            needed -= sum(node.pins > 0 for node in self._found(job))
        return needed

    def runs(self, job: Job) -> bool:
        """Whether a batch that runs now holds it: it cannot be taken out before that is complete."""
        return job.busy or (self._decodes_run and job in self.decoding)

    @property
    def settled(self) -> bool:
        """Whether all that hold pages generate, and nobody who waits has a place or is to be refused."""
        if self._prefilling or self._late:
            return False
        full = self.seqs >= self.limits.max_seqs
        return not self._waiting or (full and not never_fits(self, self._waiting[0]))

    @property
    def busy(self) -> bool:
        """Whether any request is not done."""
        return bool(self._waiting or self._prefilling or self._late or self.decoding.count)

    @property
    def active(self) -> bool:
        """Whether there is anything to decide: a request, or a training job that runs or holds pages."""
        return self.busy or (self.tuning is not None and (not self.tuning.over or self.lent > 0))

    @property
    def unused_pages(self) -> int:
        """Pages with nothing in them."""
        return self._free

    @property
    def cached_pages(self) -> int:
        return self.prefix.pages if self.prefix else 0

    @property
    def held_pages(self) -> int:
        """Pages of requests that are not in the tree."""
        return self.total_pages - self._free - self.cached_pages - self.lent

    # What happens to it

    def submit(self, job: Job) -> None:
        """A new request."""
        self._waiting.append(job)
        self._match(job)

    def look(self, now: float) -> None:
        """Before a scheduler is asked: the time, and what the prefix tree has for those who wait."""
        self.now = now
        if self._order is not None and len(self._waiting) > 1 and self.seqs < self.limits.max_seqs:
            order = self._order  # without a place nobody is admitted, and no order matters
            self._waiting = deque(sorted(self._waiting, key=lambda job: (order(job, now), job.arrival, job.id)))
        if self.prefix is not None:
            for at, job in enumerate(self._waiting):
                if at == LOOK_AHEAD:
                    break
                if job.matched != self.prefix.version:
                    self._match(job)

    def begin(self, plan: Plan) -> list[Job]:
        """Do what a plan says up to the start of its batches; returns the requests that it ended or rejected.

        Raises `ValueError` for a plan that breaks a rule: a scheduler's bug, named.
        """
        over: list[Job] = []
        for job, why in plan.reject:
            self._waiting.remove(job)
            over.append(self._finish(job, why))
        for job in plan.end:
            self.withdraw(job)
            over.append(self._finish(job, "length"))
        for job in reversed(plan.preempt):
            self._preempt(job)
        if plan.lend is not None:
            self._lend(plan.lend)
        for lane, batch in plan.lanes.items():
            if lane not in self.idle:
                raise ValueError(f"lane {lane} is not idle")
            if batch.extra and self.tuning is None:
                raise ValueError("training without a job")
            self._start(batch)
            self.idle -= {lane}
        return over

    def complete(self, lane: str, batch: Batch, now: float, earlier: Sequence[float] = ()) -> list[Job]:
        """A batch is done: every decode of it got a token, and so did every prompt that it finished.

        earlier: when the same batch, of all decodes, was done before that (see `Decoding.calm`).
        Returns the requests that are at their last token; they have left their pages.
        """
        self.idle |= {lane}
        firsts: list[Job] = []
        ended: list[Job] = []
        if batch.decode:
            if batch.decode == ALL:
                if earlier:
                    self._take(self.decoding.leap(earlier, self.gaps))
                ended = self.decoding.advance(now, self.gaps)
            else:
                ended = self.decoding.advance_some(batch.decode, now, self.gaps)  # type: ignore[arg-type]
            self._decodes_run = False
        for chunk in batch.chunks:
            job = chunk.job
            job.busy = False
            job.done += chunk.tokens
            if job.done >= job.target and not job.cancelled:
                firsts.append(job)
        for job in firsts:
            del self._prefilling[job.id]
            self._late.append(job)
            job.generated += 1
            if job.first is None:
                job.first = now
            elif job.preemptions:
                self.gaps.append((now - job.last, 1))
            job.last = now
            if job.generated >= job.most:
                ended.append(job)
        if not self._decodes_run:
            for job in self._late:
                job.phase = DECODE
                self._share(job)
                self.decoding.join(job, job.last)
            self._late.clear()
        for job in ended:
            self.withdraw(job)
            self._finish(job, "length", now)
        return ended

    def withdraw(self, job: Job) -> None:
        """Take a request out of wherever it is; its pages go back (those in the tree stay there).

        Raises `ValueError` for one that `runs`.
        """
        if self.runs(job):
            raise ValueError(f"request {job.id} is in a batch that runs")
        if job.phase == WAITING:
            self._waiting.remove(job)
            return
        if job in self.decoding:
            self.decoding.leave(job)
        elif job.id in self._prefilling:
            del self._prefilling[job.id]
        else:
            self._late.remove(job)
        self._release(job)

    def finish(self, job: Job, reason: str, now: float) -> None:
        """End a request that runs: a stop text, an end token."""
        self.withdraw(job)
        self._finish(job, reason, now)

    # Pages

    def _release(self, job: Job) -> None:
        self._share(job)
        self._free += job.pages - len(job.shared)
        if self.prefix is not None:
            self.prefix.unpin(job.shared)
        job.shared = []
        job.pages = 0
        self._owner.release(job)

    def _take(self, count: int) -> None:
        if count > self._free and self.prefix is not None:
            self._free += self.prefix.evict(count - self._free)
        if count > self._free:
            raise ValueError(f"{count} pages asked of {self._free}")
        self._free -= count

    def _lend(self, pages: int) -> None:
        """What the training job holds from now on."""
        if pages > self.lent:
            self._take(pages - self.lent)
        else:
            self._free += self.lent - pages
        self.lent = pages
        if not pages and self.tuning is not None:
            self.tuning.drop()

    def _match(self, job: Job) -> None:
        if self.prefix is None or not job.keys:
            return
        job.done = len(self._found(job)) * self.page_tokens
        job.matched = self.prefix.version

    def _found(self, job: Job) -> list[Node]:
        """The tree's pages it begins with. The last token is computed in any case: its logits are wanted."""
        assert self.prefix is not None
        return self.prefix.match(job.keys, (job.target - 1) // self.page_tokens)

    def _share(self, job: Job) -> None:
        """Give the full pages it has computed to the tree."""
        if self.prefix is None:
            return
        job.keys = self._owner.keys(job)
        full = min(job.done // self.page_tokens, len(job.keys))
        before = job.shared[-1] if job.shared else None
        for index in range(len(job.shared), full):
            node = self.prefix.add(before, job.keys[index], None)
            if node is None:  # somebody computed the same at the same time: both keep their own
                return
            node.block = self._owner.block(job, index)
            job.shared.append(node)
            before = node

    # Moves

    def _start(self, batch: Batch) -> None:
        for chunk in batch.chunks:
            job = chunk.job
            if job.phase == WAITING:
                self._admit(job, chunk.reserve or job.target)
            if job.busy or not 1 <= chunk.tokens <= job.left:
                raise ValueError(f"request {job.id}: {chunk.tokens} tokens of {job.left} left, busy={job.busy}")
            job.busy = True
        if not batch.decode:
            return
        decoding = self.decoding
        self._take(decoding.grow() if batch.decode == ALL else decoding.grow_some(batch.decode))  # type: ignore[arg-type]
        self._decodes_run = True

    def _admit(self, job: Job, tokens: int) -> None:
        if self._waiting and self._waiting[0] is job:
            self._waiting.popleft()
        else:
            self._waiting.remove(job)
        if self.prefix is not None and job.keys:
            job.shared = self._found(job)
            self.prefix.pin(job.shared)
            job.done = len(job.shared) * self.page_tokens
        job.pages = -(-max(tokens, job.target) // self.page_tokens)
        self._take(job.pages - len(job.shared))
        job.phase = PREFILL
        if job.started is None:
            job.started = self.now
        self._prefilling[job.id] = job
        self._owner.admit(job, [node.block for node in job.shared])

    def _preempt(self, job: Job) -> None:
        self.withdraw(job)
        job.phase = WAITING
        job.target = job.prompt + job.generated
        job.done = 0
        job.preemptions += 1
        self._waiting.appendleft(job)
        self._match(job)

    def _finish(self, job: Job, reason: str, now: float | None = None) -> Job:
        job.phase, job.reason = DONE, reason
        job.finished = self.now if now is None else now
        return job
