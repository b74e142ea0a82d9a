"""`Engine`: continuous batching over paged keys and values.

    plan -> run -> sample, once per step: the scheduler chooses, one forward pass computes, each finished row samples.

A request's tokens do not depend on what else is in the batch, on how its prompt is cut, on threads or on the prefix
tree: the native step gives the same bits for all of them. Not safe for two threads: whoever steps it also submits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime
from headway.llm.language_model import LanguageModel
from headway.llm.native import PAGE_TOKENS, NativeRuntime, NativeSession
from headway.llm.runtime import F32, I64
from headway.llm.sampling import Sampler
from headway.serving.job import Job
from headway.serving.prefix import PrefixTree
from headway.serving.request import Event, Logprobs, Request
from headway.serving.schedulers.base import ALL, SLO, Batch, Limits, Scheduler
from headway.serving.state import State
from headway.serving.tuning import Tuning


@dataclass(slots=True)
class _Answer:
    """What the engine keeps of a request that is not over."""

    request: Request
    job: Job
    sampler: Sampler
    tokens: list[int]
    """Prompt and answer so far."""
    keys: list[Hashable] = field(default_factory=list)
    session: NativeSession | None = None


@dataclass(slots=True)
class _Forward:
    """One batch as the native step takes it."""

    lane: str
    batch: Batch
    answers: list[_Answer]
    pieces: list[I64]
    wanted: list[bool]

    @property
    def sessions(self) -> list[NativeSession]:
        return [answer.session for answer in self.answers]  # type: ignore[misc]


class _Lanes:
    """Two lanes of native steps, a thread each."""

    def __init__(self, runtime: NativeRuntime, names: Sequence[str]) -> None:
        self._native, self._names = runtime.lanes(), tuple(names)
        self._threads = ThreadPoolExecutor(len(names))

    def split(self, shares: Mapping[str, float]) -> None:
        first, second = (shares[name] for name in self._names)
        self._native.share(first / (first + second))

    def submit(self, forward: _Forward) -> Future[F32]:
        lane = self._names.index(forward.lane)
        return self._threads.submit(self._native.step, lane, forward.sessions, forward.pieces, forward.wanted)

    def close(self) -> None:
        self._threads.shutdown()


class Engine:
    """One model with a pool of pages. `step` until `busy` is false."""

    def __init__(
        self,
        model: LanguageModel,
        scheduler: Scheduler,
        *,
        pages: int,
        cost: IterationTime,
        limits: Limits | None = None,
        slo: SLO | None = None,
        prefix: bool = True,
        order: Callable[[Job, float], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        tuning: Tuning | None = None,
    ) -> None:
        """pages: of 64 tokens (`PAGE_TOKENS`). tuning: a training job to run beside the requests.

        Raises `BadInput` for a model that does not run natively, and a scheduler that leaves a job no time.
        """
        runtime = model.runtime
        if not isinstance(runtime, NativeRuntime):
            raise BadInput(f"{model.name} runs on {model.runtime_kind}", "serve it with the native runtime")
        if tuning is not None and not scheduler.tunes:
            raise BadInput(f"{type(scheduler).__name__} gives a training job no time", "put flexllm into the recipe")
        self.model, self.runtime, self.scheduler = model, runtime, scheduler
        base = limits or Limits()
        longest = min(base.max_len, model.architecture.context)
        self.state = State(
            pages,
            PAGE_TOKENS,
            cost,
            Limits(base.max_seqs, longest, base.watermark),
            slo,
            scheduler.lanes,
            PrefixTree() if prefix else None,
            self,
            order,
            tuning,
        )
        self.steps = 0
        self.rows = 0
        self.trained = 0
        self.clock = clock
        self._answers: dict[int, _Answer] = {}
        self._ids = 0
        self._to_cancel: set[int] = set()
        self._running: dict[Future[F32], _Forward] = {}
        self._lanes = _Lanes(runtime, scheduler.lanes) if len(scheduler.lanes) > 1 else None

    # Requests

    def submit(self, request: Request, arrival: float | None = None) -> int:
        """Queue a request; its id. Raises `BadInput` when no engine of this size could serve it.

        arrival: when it came, on the engine's clock, if that was before now.
        """
        count, context = len(request.tokens), self.state.limits.max_len
        if not count:
            raise BadInput("the prompt is empty", "give at least one token")
        if count + request.max_tokens > context:
            raise BadInput(
                f"{count} tokens of prompt and max_tokens={request.max_tokens} exceed the context of {context}",
                f"ask for at most {context - count}" if count < context else "shorten the prompt",
            )
        tokens = [int(token) for token in request.tokens]
        if min(tokens) < 0 or max(tokens) >= self.model.architecture.vocab:
            raise BadInput("a token id lies outside the vocabulary", f"ids are 0..{self.model.architecture.vocab - 1}")
        self._ids += 1
        job = Job(self._ids, self.clock() if arrival is None else arrival, count, request.max_tokens)
        answer = _Answer(request, job, Sampler(request.sampling, tokens), tokens)
        answer.job.deadline, answer.job.stage = request.deadline, request.stage
        self._answers[self._ids] = answer
        if self.state.prefix is not None:
            answer.job.keys = self.keys(answer.job)
        self.state.submit(answer.job)
        return self._ids

    def cancel(self, id: int) -> None:
        """Its pages are free after the step that runs; an unknown id is ignored."""
        if id in self._answers:
            self._to_cancel.add(id)

    @property
    def busy(self) -> bool:
        """Whether any request is not over."""
        return bool(self._answers)

    @property
    def active(self) -> bool:
        """Whether a step may have something to do: requests, or a training job."""
        return self.busy or self.state.active

    def job(self, id: int) -> Job | None:
        """A request that is not over."""
        answer = self._answers.get(id)
        return None if answer is None else answer.job

    # One step

    def step(self) -> list[Event]:
        """Run until one batch is done (or nothing can run); what came of it.

        `rows` then counts what was computed for requests, `trained` the pieces of training done; `state.gaps` holds
        the times between tokens of this step alone.
        """
        events: list[Event] = []
        self.rows = self.trained = 0
        self.state.gaps.clear()
        self._cancel(events)
        for forward in self._plan(events):
            if self._lanes is None:
                self._complete(forward, self._run(forward), events)
            else:
                self._running[self._lanes.submit(forward)] = forward
        if self._running:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                self._complete(self._running.pop(future), future.result(), events)
        self.steps += 1
        return events

    def _run(self, forward: _Forward) -> F32:
        """The forward pass, and the training beside it."""
        logits = np.empty((0, self.model.architecture.vocab), np.float32)
        if forward.answers:
            logits = self.runtime.step(forward.sessions, forward.pieces, wanted=forward.wanted)
        if forward.batch.extra:
            assert self.state.tuning is not None
            self.state.tuning.run(forward.batch.extra)
            self.trained = len(forward.batch.extra)
        return logits

    def _plan(self, events: list[Event]) -> list[_Forward]:
        """Ask the scheduler until every lane runs or it has nothing for those that are idle."""
        state, started = self.state, []
        while state.idle and state.active:
            state.look(self.clock())
            plan = self.scheduler.decide(state)
            if not plan:
                break
            for job in state.begin(plan):
                events.append(self._end(job, job.reason))
            if self._lanes is not None and plan.shares is not None:
                self._lanes.split(plan.shares)
            for lane, batch in plan.lanes.items():
                started.append(self._forward(lane, batch))
        return started

    def _forward(self, lane: str, batch: Batch) -> _Forward:
        forward = _Forward(lane, batch, [], [], [])
        for job in self.state.decoding if batch.decode == ALL else batch.decode:
            answer = self._answers[job.id]  # type: ignore[union-attr]
            forward.answers.append(answer)
            forward.pieces.append(np.array(answer.tokens[-1:], np.int64))
            forward.wanted.append(True)
        for chunk in batch.chunks:
            answer, done = self._answers[chunk.job.id], chunk.job.done
            forward.answers.append(answer)
            forward.pieces.append(np.array(answer.tokens[done : done + chunk.tokens], np.int64))
            forward.wanted.append(chunk.tokens == chunk.job.left)
        return forward

    def _complete(self, forward: _Forward, logits: F32, events: list[Event]) -> None:
        self.rows += sum(map(len, forward.pieces))
        sampled = [answer for answer, wanted in zip(forward.answers, forward.wanted, strict=True) if wanted]
        made = [_sample(answer, row) for answer, row in zip(sampled, logits, strict=True)]
        ended = self.state.complete(forward.lane, forward.batch, self.clock())
        full = {job.id for job in ended}
        for answer, (token, logprobs, error, complete) in zip(sampled, made, strict=True):
            job = answer.job
            if error:
                finish = error
            else:
                answer.tokens.append(token)
                is_end = token in self.model.architecture.eos and not answer.request.ignore_end
                finish = "end" if is_end or complete else "length" if job.id in full else ""
            if finish and job.id not in full:
                self.state.finish(job, finish, self.state.now)
            if finish:
                job.reason = finish
                del self._answers[job.id]
            events.append(Event(job.id, None if error else token, finish, logprobs))

    def _cancel(self, events: list[Event]) -> None:
        for id in list(self._to_cancel):
            answer = self._answers.get(id)
            if answer is not None and self.state.runs(answer.job):
                continue  # after its batch
            self._to_cancel.discard(id)
            if answer is not None:
                self.state.finish(answer.job, "cancelled", self.clock())
                events.append(self._end(answer.job, "cancelled"))

    def _end(self, job: Job, reason: str) -> Event:
        del self._answers[job.id]
        return Event(job.id, None, reason)

    # The owner of the pages (see `PageOwner`)

    def admit(self, job: Job, blocks: Sequence[Any]) -> None:
        answer = self._answers[job.id]
        answer.session = self.runtime.begin()
        if blocks:
            answer.session.adopt(blocks)

    def keys(self, job: Job) -> Sequence[Hashable]:
        answer = self._answers[job.id]
        tokens = answer.tokens
        for at in range(len(answer.keys), len(tokens) // PAGE_TOKENS):
            page = np.array(tokens[at * PAGE_TOKENS : (at + 1) * PAGE_TOKENS], np.int32).tobytes()
            answer.keys.append((answer.request.salt, page) if at == 0 else page)
        return answer.keys

    def block(self, job: Job, index: int) -> Any:
        session = self._answers[job.id].session
        assert session is not None
        return session.share(index)

    def release(self, job: Job) -> None:
        self._answers[job.id].session = None

    def close(self) -> None:
        """Wait for batches that run, and let go of the lanes' threads."""
        if self._lanes is not None:
            self._lanes.close()


def _sample(answer: _Answer, logits: F32) -> tuple[int, Logprobs | None, str, bool]:
    """(token, its log-probabilities, an error in words, whether a constraint is fulfilled)."""
    wanted = answer.request.logprobs
    constraint = answer.request.constraint
    try:
        token = answer.sampler.pick(logits if constraint is None else constraint.mask(logits))
        complete = constraint is not None and constraint.accept(token)
    except BadInput as error:
        return -1, None, str(error), False
    return token, None if wanted is None else _logprobs(logits, token, wanted), "", complete


def _logprobs(logits: F32, token: int, count: int) -> Logprobs:
    top = float(logits.max())
    total = top + float(np.log(np.exp((logits - top).astype(np.float64)).sum()))
    best = np.argpartition(-logits, count)[:count] if count else np.empty(0, np.int64)
    best = best[np.argsort(-logits[best], kind="stable")]
    return Logprobs(float(logits[token]) - total, tuple((int(t), float(logits[t]) - total) for t in best))
