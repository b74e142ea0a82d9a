"""A fleet in simulated time: several engines, unequal ones too, behind one dispatcher.

The engines are the simulator's own `Instance`s. Work arrives open loop; a call that is done may bring new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headway.serving.dispatch.base import Call, Dispatcher, InstanceView
from headway.serving.job import Job
from headway.serving.outcome import Record
from headway.serving.schedulers.base import Scheduler
from headway.serving.simulator import Device, Instance, Setting
from headway.serving.state import State
from headway.serving.trace import Trace


@dataclass(frozen=True)
class Machine:
    """How one instance of a fleet is made. `kind`: those of one kind are alike."""

    kind: str
    scheduler: Callable[[], Scheduler]
    device: Device
    setting: Setting


class Work(Protocol):
    """What is to be done."""

    def arrivals(self) -> Iterator[tuple[float, Call]]:
        """When (seconds, never falling) each call comes that no other call brings."""
        ...

    def done(self, call: Call, now: float) -> Iterable[Call]:
        """A call is over (`call.job.first` is None: it was refused); the calls that it brings, which arrive now."""
        ...


@dataclass(frozen=True)
class TraceWork:
    """Each row of a trace is a call of its own."""

    trace: Trace

    def arrivals(self) -> Iterator[tuple[float, Call]]:
        trace = self.trace
        rows = zip(trace.arrival.tolist(), trace.prompt.tolist(), trace.output.tolist(), strict=True)
        for at, (arrival, prompt, output) in enumerate(rows):
            yield arrival, Call(Job(at, arrival, prompt, output, trace.keys[at] if trace.keys is not None else ()))

    def done(self, call: Call, now: float) -> Iterable[Call]:
        return ()


@dataclass(slots=True)
class _Place:
    """An instance and whether it still answers."""

    kind: str
    instance: Instance
    alive: bool = True

    @property
    def state(self) -> State:
        return self.instance.state


@dataclass
class Fleet:
    """A fleet as its dispatcher sees it."""

    instances: Sequence[InstanceView]
    now: float = 0.0
    placed: dict[int, int] = field(default_factory=dict)
    """Instance by the id of a call's job."""


def simulate_fleet(
    machines: Sequence[Machine],
    work: Work,
    dispatcher: Dispatcher,
    record: Record,
    *,
    losses: Sequence[tuple[float, int]] = (),
    until: float = float("inf"),
) -> Fleet:
    """Run all work to its end, or to `until` seconds. `record` takes what happens, by the ids of jobs.

    losses: (when, which) instances die; what they held is dispatched again and computed from its start.
    """
    places = [_Place(m.kind, Instance(m.scheduler(), m.device, m.setting, record)) for m in machines]
    fleet = Fleet(places)
    calls: dict[int, Call] = {}
    deaths = sorted(losses)
    arriving = iter(work.arrivals())
    upcoming = next(arriving, None)

    def place(call: Call, touched: set[int]) -> None:
        at = dispatcher.route(call, fleet)
        fleet.placed[call.job.id] = at
        calls[call.job.id] = call
        if places[at].instance.submit(call.job, fleet.now):
            touched.add(at)
        else:
            leave(call.job, at, touched)

    def leave(job: Job, at: int, touched: set[int]) -> None:
        call = calls.pop(job.id)
        dispatcher.done(call, at, fleet)
        for child in work.done(call, fleet.now):
            place(child, touched)

    while True:
        first, at = min(((place_.instance.end, i) for i, place_ in enumerate(places)), default=(INFINITE, -1))
        arrival = upcoming[0] if upcoming is not None else INFINITE
        death = deaths[0][0] if deaths else INFINITE
        now = min(first, arrival, death)
        if now > until or (now == INFINITE) or (death < min(first, arrival) and not calls and upcoming is None):
            break
        fleet.now = now
        touched: set[int] = set()
        if first == now:
            for job in places[at].instance.complete(now):
                leave(job, at, touched)
            touched.add(at)
        elif death == now:
            lost = deaths.pop(0)[1]
            places[lost].alive = False
            places[lost].instance.end = INFINITE
            for call in _lose(fleet, lost, calls):
                dispatcher.done(call, lost, fleet)
                place(call, touched)
        while upcoming is not None and upcoming[0] <= now:
            place(upcoming[1], touched)
            upcoming = next(arriving, None)
        while touched:
            index = touched.pop()
            if places[index].alive:
                for job in places[index].instance.start(now):
                    leave(job, index, touched)
    for held in places:
        record.take_gaps(held.state.gaps)
    record.finish_run(fleet.now, len(calls) + sum(1 for _ in arriving) + (upcoming is not None))
    return fleet


INFINITE = float("inf")


def _lose(fleet: Fleet, at: int, calls: dict[int, Call]) -> list[Call]:
    """An instance is gone: the calls it held, as they came to it."""
    held = []
    for id, where in list(fleet.placed.items()):
        if where == at and id in calls:
            call = calls.pop(id)
            old = call.job
            call.job = Job(old.id, old.arrival, old.prompt, old.most, old.keys, old.deadline, old.stage)
            held.append(call)
    return held
