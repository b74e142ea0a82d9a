"""A fleet of real engines behind the dispatcher that the simulator runs: the same `Work`, the same calls.

Each engine is stepped in a thread of its own and takes its requests from an inbox; one coordinator places calls, and is
told of those that are over. An engine that fails is lost: what it held is dispatched again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from headway.core.errors import BadInput, HeadwayError
from headway.serving.dispatch.base import Call, Dispatcher
from headway.serving.engine import Engine
from headway.serving.fleet import Fleet, Work
from headway.serving.job import DONE, Job
from headway.serving.request import Request
from headway.serving.state import State


@dataclass(slots=True)
class _Over:
    """A call has left its engine; `job`: the engine's own, with its times. `job` None: the engine is lost."""

    instance: int
    call: int = -1
    job: Job | None = None
    tokens: list[int] = field(default_factory=list)
    reason: str = ""


class LiveInstance:
    """An engine and the thread that steps it. Everything but `put`, `stop` and reading is that thread's."""

    def __init__(self, kind: str, engine: Engine) -> None:
        self.kind, self.engine, self.alive = kind, engine, True
        self._inbox: queue.SimpleQueue[tuple[int, Request, float] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> State:
        return self.engine.state

    def start(self, at: int, outbox: queue.SimpleQueue[_Over]) -> None:
        self._thread = threading.Thread(target=self._run, args=(at, outbox), name=f"engine {at}", daemon=True)
        self._thread.start()

    def put(self, call: int, request: Request, arrival: float) -> None:
        """arrival: on the engine's clock."""
        self._inbox.put((call, request, arrival))

    def stop(self) -> None:
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()
        self.engine.close()

    def _run(self, at: int, outbox: queue.SimpleQueue[_Over]) -> None:
        held: dict[int, tuple[int, Job, list[int]]] = {}
        try:
            while True:
                while not self._inbox.empty() or not self.engine.active:
                    item = self._inbox.get()
                    if item is None:
                        return
                    call, request, arrival = item
                    try:
                        id = self.engine.submit(request, arrival)
                    except BadInput as error:
                        outbox.put(_Over(at, call, reason=error.what, job=_refused(request, arrival)))
                        continue
                    job = self.engine.job(id)
                    assert job is not None
                    held[id] = call, job, []
                for event in self.engine.step():
                    call, job, tokens = held[event.id]
                    if event.token is not None:
                        tokens.append(event.token)
                    if event.finish:
                        del held[event.id]
                        outbox.put(_Over(at, call, job, tokens, event.finish))
        except Exception as error:  # whatever it is, the calls it held must go on elsewhere
            outbox.put(_Over(at, reason=f"{type(error).__name__}: {error}"))


def _refused(request: Request, arrival: float) -> Job:
    job = Job(0, arrival, max(len(request.tokens), 1), request.max_tokens)
    job.phase = DONE
    return job


def run_fleet(instances: Sequence[LiveInstance], work: Work, dispatcher: Dispatcher) -> Fleet:
    """Run all work to its end in real time; seconds from the first moment. The engines are closed at the end.

    Calls need their `request`. Raises `Lacking` when no instance is left, with what the last one failed of.
    """
    fleet = Fleet(list(instances))  # type: ignore[arg-type]
    outbox: queue.SimpleQueue[_Over] = queue.SimpleQueue()
    calls: dict[int, Call] = {}
    clock = time.monotonic
    begin = clock()

    def place(call: Call) -> None:
        at = dispatcher.route(call, fleet)
        fleet.placed[call.job.id] = at
        calls[call.job.id] = call
        assert isinstance(call.request, Request)
        request = _timed(call, begin)
        instances[at].put(call.job.id, request, begin + call.job.arrival)

    for at, instance in enumerate(instances):
        instance.start(at, outbox)
    why = ""
    try:
        arriving = iter(work.arrivals())
        upcoming = next(arriving, None)
        while calls or upcoming is not None:
            wait = None if upcoming is None else max(upcoming[0] - (clock() - begin), 0.0)
            try:
                over = outbox.get(timeout=wait) if wait != 0.0 else outbox.get_nowait()
            except queue.Empty:
                over = None
            fleet.now = clock() - begin
            if over is not None and over.job is None:
                instances[over.instance].alive = False
                why = over.reason
                for id in [id for id in calls if fleet.placed[id] == over.instance]:
                    call = calls.pop(id)
                    dispatcher.done(call, over.instance, fleet)
                    place(call)
            elif over is not None and fleet.placed.get(over.call) == over.instance and over.call in calls:
                call = calls.pop(over.call)
                _take(call, over, begin)
                dispatcher.done(call, over.instance, fleet)
                for child in work.done(call, fleet.now):
                    place(child)
            while upcoming is not None and upcoming[0] <= fleet.now:
                place(upcoming[1])
                upcoming = next(arriving, None)
    except HeadwayError as error:
        if why:
            raise type(error)(f"{error.what} (the last one failed: {why:.200})", error.mend) from None
        raise
    finally:
        for instance in instances:
            instance.stop()
    return fleet


def _timed(call: Call, begin: float) -> Request:
    """The call's request with the deadline and the stage that its engine's queue orders by, on the engine's clock."""
    deadline = None if call.job.deadline is None else begin + call.job.deadline
    made: Request = replace(call.request, deadline=deadline, stage=call.job.stage)
    return made


def _take(call: Call, over: _Over, begin: float) -> None:
    """What the engine's job became, in the call's own."""
    assert over.job is not None
    job, seen = call.job, over.job
    job.phase, job.reason = DONE, over.reason
    job.generated, job.preemptions = seen.generated, seen.preemptions
    if seen.first is not None and seen.finished is not None and seen.started is not None:
        job.started, job.first, job.finished = seen.started - begin, seen.first - begin, seen.finished - begin
    call.answer[:] = over.tokens
