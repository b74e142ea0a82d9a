"""Two lanes over one set of weights and pages: prompts on one, answers on the other (semi-PD and Nexus share this).

Pages have one owner: whoever runs `decide` admits, grows and preempts for both lanes, and a prompt takes all its pages
at once. So no page is given twice, nothing is copied when a prompt's last chunk makes it an answer, and half-read
prompts cannot fill the pool. A batch never mixes the two kinds of work.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice

from headway.serving.job import Job
from headway.serving.schedulers.base import (
    ALL,
    Batch,
    Chunk,
    Plan,
    Scheduler,
    View,
    make_room,
    never_fits,
    refuse_oversized,
)

PREFILL, DECODE = "prefill", "decode"


class TwoLanes(Scheduler):
    """What runs next on each idle lane. How the machine is split, and who is read first, is for the system to say."""

    lanes = (PREFILL, DECODE)

    def __init__(self, max_prefill_tokens: int, max_decode_batch: int) -> None:
        self.max_prefill_tokens, self.max_decode_batch = max_prefill_tokens, max_decode_batch

    @abstractmethod
    def split(self, view: View, plan: Plan) -> dict[str, float] | None:
        """Shares of the machine by lane (each above 0; their sum may exceed 1: then they compete); None: as before."""

    def order(self, view: View) -> Iterable[Job]:
        """Waiting requests, the next to be read first."""
        return view.waiting

    def spare(self, view: View) -> int:
        """Pages that admission leaves to the answers that run."""
        return int(view.limits.watermark * view.total_pages)

    def decide(self, view: View) -> Plan:
        plan = Plan()
        free = view.free_pages
        if DECODE in view.idle:
            free = make_room(view, plan)
            if plan.preempt and PREFILL not in view.idle and len(plan.preempt) >= view.decoding.count:
                return Plan()  # a prompt that is being read holds the pages: older answers wait for it
            if plan.preempt or plan.end:
                return plan  # the view is asked again without them
            count = view.decoding.count
            if count:
                some = list(islice(view.decoding, self.max_decode_batch)) if count > self.max_decode_batch else ALL
                plan.lanes[DECODE] = Batch(decode=some)
        if PREFILL in view.idle:
            refuse_oversized(view, plan)
            chunks = list(self._chunks(view, plan, free))
            if chunks:
                plan.lanes[PREFILL] = Batch(chunks)
        if plan.lanes:
            plan.shares = self.split(view, plan)
        return plan

    def _chunks(self, view: View, plan: Plan, free: int) -> Iterator[Chunk]:
        """Prompts that are partly read, then new ones, whole as far as the batch has room."""
        left = self.max_prefill_tokens
        for job in view.prefilling:
            if left < 1:
                return
            tokens = min(job.left, left)
            yield Chunk(job, tokens)
            left -= tokens
        seqs = view.seqs
        if left < 1 or seqs >= view.limits.max_seqs or len(view.waiting) == len(plan.reject):
            return
        refused = {job.id for job, _ in plan.reject}
        spare = self.spare(view)
        for job in self.order(view):
            if job.id in refused or never_fits(view, job):
                continue
            pages = view.pages_for(job, job.target)
            # An empty engine takes anything that fits at all.
            if left < 1 or seqs >= view.limits.max_seqs or pages + (spare if seqs else 0) > free:
                return
            tokens = min(job.left, left)
            yield Chunk(job, tokens)
            left -= tokens
            free -= pages
            seqs += 1
