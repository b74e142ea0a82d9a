"""The engine's own process: steps while there is work, reads commands between steps, one write for each step.

Whatever this process does to itself, the HTTP process lives; and when that one is gone, this one ends too.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import assert_never

from headway.core.errors import BadInput, HeadwayError
from headway.llm.sampling import Sampling
from headway.serving.channel import Channel, Closed
from headway.serving.engine import Engine
from headway.serving.grammar import Grammars
from headway.serving.messages import REFUSED, Cancel, Embed, Stats, Stepped, Submit, Token, Training, to_model
from headway.serving.request import Constraint, Event, Request
from headway.serving.tuning import FineTune

STUCK_S = 0.002
"""How long to wait for a command when there are requests but nothing can run."""
IDLE_S = 0.25
"""The same with a training job alone that may not run."""
COMPILE_S = 1.0
"""How long a schema may be compiled."""


def serve(engine: Engine, channel: Channel, grammars: Grammars) -> None:
    """Run until the other side is gone."""
    try:
        _Worker(engine, channel, grammars).run()
    except Closed:
        return
    finally:
        grammars.close()
        engine.close()


@dataclass(slots=True)
class _Compiling:
    """A request that waits for its schema."""

    wanted: Submit
    future: Future[Constraint]
    begun: float | None = None


class _Worker:
    def __init__(self, engine: Engine, channel: Channel, grammars: Grammars) -> None:
        self._engine, self._channel, self._grammars = engine, channel, grammars
        self._theirs: dict[int, int] = {}  # the engine's id -> the HTTP process's
        self._ours: dict[int, int] = {}
        self._compiling: dict[int, _Compiling] = {}
        self._refused: list[Token] = []

    def run(self) -> None:
        engine = self._engine
        patience: float | None = 0.0  # a training job is there before the first request
        while True:
            for body in self._channel.receive(patience):
                self._take(to_model.decode(body))
            if self._compiling:
                self._look_at_schemas()
            if not engine.active and not self._refused:
                patience = STUCK_S if self._compiling else None
                continue
            begin = time.perf_counter()
            events = engine.step()
            seconds = time.perf_counter() - begin
            tokens = [*self._refused, *map(self._told, events)]
            self._refused.clear()
            patience = 0.0 if engine.rows or engine.trained or events else STUCK_S if engine.busy else IDLE_S
            self._channel.send(Stepped(tokens, self._stats(seconds)))

    def _take(self, message: Submit | Cancel | Embed) -> None:
        if isinstance(message, Submit):
            if message.grammar:
                self._compiling[message.id] = _Compiling(message, self._grammars.start(message.grammar))
            else:
                self._submit(message, None)
        elif isinstance(message, Cancel):
            for theirs in message.ids:
                self._compiling.pop(theirs, None)
                if (ours := self._ours.get(theirs)) is not None:
                    self._engine.cancel(ours)
        elif isinstance(message, Embed):
            raise TypeError("a language model embeds nothing")
        else:
            assert_never(message)

    def _look_at_schemas(self) -> None:
        for id, waits in list(self._compiling.items()):
            if waits.future.done():
                del self._compiling[id]
                try:
                    self._submit(waits.wanted, waits.future.result())
                except HeadwayError as error:
                    self._refuse(id, error)
            elif waits.begun is None:
                waits.begun = time.monotonic() if waits.future.running() else None
            elif time.monotonic() > waits.begun + COMPILE_S:
                del self._compiling[id]
                self._refuse(id, BadInput("the JSON schema takes too long to compile", "simplify it"))

    def _submit(self, m: Submit, constraint: Constraint | None) -> None:
        try:
            sampling = Sampling(m.temperature, m.top_k, m.top_p, m.min_p, m.repetition_penalty, m.seed)
            id = self._engine.submit(
                Request(m.tokens, m.max_tokens, sampling, m.ignore_end, m.logprobs, constraint, m.salt)
            )
        except BadInput as error:
            self._refuse(m.id, error)
            return
        self._theirs[id], self._ours[m.id] = m.id, id

    def _refuse(self, id: int, error: HeadwayError) -> None:
        self._refused.append(Token(id, None, REFUSED + str(error)))

    def _told(self, event: Event) -> Token:
        theirs = self._theirs[event.id]
        if event.finish:
            del self._theirs[event.id], self._ours[theirs]
        if event.logprobs is None:
            return Token(theirs, event.token, event.finish)
        return Token(theirs, event.token, event.finish, event.logprobs.chosen, list(event.logprobs.top))

    def _stats(self, seconds: float) -> Stats:
        engine, state = self._engine, self._engine.state
        cached = state.cached_pages
        idle = 0 if state.prefix is None else state.prefix.evictable
        return Stats(
            engine.steps,
            engine.rows,
            seconds,
            len(state.waiting),
            len(state.prefilling),
            state.decoding.count,
            state.free_pages - idle,
            state.held_pages,
            cached,
            idle,
            _training(engine),
        )


def _training(engine: Engine) -> Training | None:
    job = engine.state.tuning
    if not isinstance(job, FineTune):
        return None
    losses = job.trainer.losses
    trouble = job.error or engine.scheduler.starved
    return Training(job.position.step, job.position.course.steps, losses[-1] if losses else None, trouble)
