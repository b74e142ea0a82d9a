"""The simulator: discrete events over the engine's own `State` and the engine's own scheduler objects.

Two kinds of event: a request arrives, a lane's batch is done. How long a batch takes is the `Device`'s to say; it is
told what runs on every lane, so that lanes can slow each other down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from headway.hardware.iteration_time import IterationTime, Load
from headway.serving.job import Job
from headway.serving.outcome import Outcome
from headway.serving.prefix import PrefixTree
from headway.serving.schedulers.base import SLO, Batch, Limits, Scheduler, load_of
from headway.serving.state import State
from headway.serving.trace import Trace

FLUSH = 1 << 16


class Device(Protocol):
    """What executes batches."""

    def seconds(self, running: Mapping[str, Load], shares: Mapping[str, float]) -> Mapping[str, float]:
        """How long each lane's batch takes from its start to its end, were things to stay as they are."""
        ...


@dataclass(frozen=True)
class OneLane:
    """A device with a single lane and a fitted time."""

    cost: IterationTime

    def seconds(self, running: Mapping[str, Load], shares: Mapping[str, float]) -> Mapping[str, float]:
        return {lane: self.cost(load) for lane, load in running.items()}


@dataclass(slots=True)
class _Flight:
    batch: Batch
    load: Load
    left: float = 1.0
    """Share of the batch still to do at `since`."""
    since: float = 0.0
    seconds: float = 0.0

    @property
    def end(self) -> float:
        return self.since + self.left * self.seconds


@dataclass(frozen=True)
class Setting:
    """What an engine has: pages of keys and values, limits, what is wanted of it."""

    pages: int
    page_tokens: int = 16
    limits: Limits = field(default_factory=Limits)
    slo: SLO = field(default_factory=SLO)
    prefix: bool = False
    order: Callable[[Job, float], float] | None = None
    most_queue: int = 1 << 60
    """Waiting requests beyond which a new one is turned away."""


def simulate(
    trace: Trace,
    scheduler: Scheduler,
    device: Device,
    setting: Setting,
    *,
    cost: IterationTime | None = None,
    until: float = float("inf"),
    watch: Callable[[float, State], Any] | None = None,
) -> Outcome:
    """Run a trace to its end, or to `until` seconds.

    cost: what the scheduler believes; by default the device's own, which flatters a scheduler that plans with it.
    watch: called after each event with the time and the state (tests, pictures).
    """
    believed = cost if cost is not None else getattr(device, "cost", None)
    if believed is None:
        raise TypeError("give the cost that the scheduler believes")
    state = State(
        setting.pages,
        setting.page_tokens,
        believed,
        setting.limits,
        setting.slo,
        scheduler.lanes,
        PrefixTree() if setting.prefix else None,
        order=setting.order,
    )
    record = Outcome.begin(trace)
    flights: dict[str, _Flight] = {}
    shares: Mapping[str, float] = dict.fromkeys(scheduler.lanes, 1.0)
    arrivals, prompts, outputs = trace.arrival.tolist(), trace.prompt.tolist(), trace.output.tolist()
    count, upcoming, now = len(trace), 0, 0.0
    next_arrival = arrivals[0]

    while True:
        lane, at = "", next_arrival
        for name, flight in flights.items():
            if flight.end < at or (flight.end == at and not lane):
                lane, at = name, flight.end
        if at > until or at == float("inf"):
            break
        now = at
        if lane:
            flight = flights.pop(lane)
            ended = state.complete(lane, flight.batch, now)
            record.batch(now, flight.load, flight.seconds)
            for job in ended:
                record.end(job)
            if len(state.gaps) > FLUSH:
                record.take_gaps(state.gaps)
            if flights:
                _retime(flights, device, shares, now)
        while next_arrival <= now:
            job = Job(
                upcoming,
                next_arrival,
                prompts[upcoming],
                outputs[upcoming],
                trace.keys[upcoming] if trace.keys is not None else (),
            )
            if len(state.waiting) < setting.most_queue:
                state.submit(job)
            else:
                record.reject(job)
            upcoming += 1
            next_arrival = arrivals[upcoming] if upcoming < count else float("inf")
        while state.idle and state.busy:
            state.look(now)
            plan = scheduler.decide(state)
            if not plan:
                break
            loads = {}
            for job in state.begin(plan):
                record.end(job)
            if plan.shares is not None:
                shares = plan.shares
            for name, batch in plan.lanes.items():
                loads[name] = load_of(batch, state)
                flights[name] = _Flight(batch, loads[name], since=now)
            if loads or plan.shares is not None:
                _retime(flights, device, shares, now)
        if watch is not None:
            watch(now, state)
    record.take_gaps(state.gaps)
    unfinished = state.seqs + len(state.waiting) + count - upcoming
    return record.finish_run(now, unfinished)


def _retime(flights: dict[str, _Flight], device: Device, shares: Mapping[str, float], now: float) -> None:
    """What runs has changed: note how far each batch is, and how long it takes from now on."""
    seconds = device.seconds({name: flight.load for name, flight in flights.items()}, shares)
    for name, flight in flights.items():
        if flight.seconds > 0:
            flight.left = max(flight.left - (now - flight.since) / flight.seconds, 0.0)
        flight.since = now
        flight.seconds = max(seconds[name], 1e-9)
    if not all(np.isfinite(flight.seconds) for flight in flights.values()):
        raise ValueError("a device gave a time that is no number")
