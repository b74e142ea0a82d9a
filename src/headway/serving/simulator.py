"""The simulator: discrete events over the engine's own `State` and the engine's own scheduler objects.

Two kinds of event: a request arrives, a lane's batch is done. How long a batch takes is the `Device`'s to say; it is
told what runs on every lane, so that lanes can slow each other down.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

from headway.hardware.iteration_time import IterationTime, Load
from headway.serving.job import Job
from headway.serving.outcome import Outcome, Record
from headway.serving.prefix import PrefixTree
from headway.serving.schedulers.base import ALL, SLO, Batch, Limits, Scheduler, load_of
from headway.serving.state import State
from headway.serving.trace import Trace
from headway.serving.tuning import Tuning, TuningTime

FLUSH = 1 << 16
LEAST_S = 1e-9
"""A batch takes some time, whatever a device says."""


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
    """Of its requests."""
    whole: Load
    """With the training tokens that join the same pass."""
    added: float
    """Seconds of training after that pass."""
    left: float = 1.0
    """Share of the batch still to do at `since`."""
    since: float = 0.0
    seconds: float = 0.0
    passes: int = 1
    ends: list[float] = field(default_factory=list)
    """When each of several passes is done, where the same batch runs several times in a row."""

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


class Instance:
    """One engine in simulated time. `end` is when its next batch is done; infinite while nothing runs."""

    def __init__(
        self,
        scheduler: Scheduler,
        device: Device,
        setting: Setting,
        record: Record,
        cost: IterationTime | None = None,
        tuning: Tuning | None = None,
        tuning_cost: TuningTime | None = None,
    ) -> None:
        """record: takes what happens; a fleet's instances share one, as long as no two of its jobs share an id.
        cost: what the scheduler believes; by default the device's own, which flatters a scheduler that plans with it.
        tuning: a training job beside the requests; tuning_cost: what its pieces really take, by default `tuning.cost`.
        """
        believed = cost if cost is not None else getattr(device, "cost", None)
        if believed is None:
            raise TypeError("give the cost that the scheduler believes")
        self.scheduler, self.device, self.setting, self.record = scheduler, device, setting, record
        self.tuning, self.tuning_cost = tuning, tuning_cost
        self.state = State(
            setting.pages,
            setting.page_tokens,
            believed,
            setting.limits,
            setting.slo,
            scheduler.lanes,
            PrefixTree() if setting.prefix else None,
            order=setting.order,
            tuning=tuning,
        )
        self.end = float("inf")
        self._lane = ""
        self._flights: dict[str, _Flight] = {}
        self._leap: _Flight | None = None
        self._shares: Mapping[str, float] = dict.fromkeys(scheduler.lanes, 1.0)

    def submit(self, job: Job, now: float) -> bool:
        """Queue a request now; False: the queue is full and it is turned away."""
        if len(self.state.waiting) >= self.setting.most_queue:
            self.record.reject(job)
            return False
        self.state.submit(job)
        if self._leap is not None and not self.state.settled:
            # The scheduler must see it after the pass that runs now.
            del self._leap.ends[bisect_left(self._leap.ends, now) + 1 :]
            self.end = self._leap.ends[-1]
        return True

    def complete(self, now: float) -> list[Job]:
        """The batch that ends now is done; the requests at their last token."""
        state, record = self.state, self.record
        flight = self._flights.pop(self._lane)
        self._leap = None
        before, earlier = flight.since, flight.ends[:-1]
        ended = state.complete(self._lane, flight.batch, now, earlier)
        for end in earlier:
            record.batch(end, flight.load, end - before)
            before = end
        record.batch(now, flight.load, now - before if earlier else flight.seconds)
        if flight.batch.extra:
            assert self.tuning is not None
            self.tuning.run(flight.batch.extra)
        for job in ended:
            record.end(job)
        if len(state.gaps) > FLUSH:
            record.take_gaps(state.gaps)
        self._retime(now)
        return ended

    def start(self, now: float) -> list[Job]:
        """Ask the scheduler for batches for the lanes that are idle; the requests that it ended or rejected."""
        state, over = self.state, []
        while state.idle and state.active:
            state.look(now)
            plan = self.scheduler.decide(state)
            if not plan:
                break
            for job in state.begin(plan):
                self.record.end(job)
                over.append(job)
            if plan.shares is not None:
                self._shares = plan.shares
            for name, batch in plan.lanes.items():
                self._flights[name] = self._flight(batch, now)
            if plan.lanes or plan.shares is not None:
                self._retime(now)
        return over

    def _flight(self, batch: Batch, now: float) -> _Flight:
        load = load_of(batch, self.state)
        whole, added = load, 0.0
        if batch.extra:
            assert self.tuning is not None
            cost = self.tuning_cost or self.tuning.cost
            whole, added = cost.split(load, self.tuning.position, batch.extra)
        flight = _Flight(batch, load, whole, added, since=now)
        alone = batch.decode == ALL and not batch.chunks and not batch.extra and len(self.scheduler.lanes) == 1
        if alone and self.scheduler.steady and self.tuning is None and self.state.settled:
            flight.passes = self.state.decoding.calm(self.state.free_pages)
        return flight

    def _retime(self, now: float) -> None:
        """What runs has changed: note how far each batch is, and how long it takes from now on."""
        self._lane, self.end = "", float("inf")
        if not self._flights:
            return
        for name, flight in self._flights.items():
            if flight.passes > 1:
                self._run_on(name, flight, now)
                return
        loads = {name: flight.whole for name, flight in self._flights.items() if flight.whole.tokens}
        seconds = self.device.seconds(loads, self._shares)
        for name, flight in self._flights.items():
            if flight.seconds > 0:
                flight.left = max(flight.left - (now - flight.since) / flight.seconds, 0.0)
            flight.since = now
            flight.seconds = max(seconds.get(name, 0.0) + flight.added, LEAST_S)
            if not isfinite(flight.seconds):
                raise ValueError("a device gave a time that is no number")
            if flight.end < self.end:
                self._lane, self.end = name, flight.end

    def _run_on(self, name: str, flight: _Flight, now: float) -> None:
        """Several passes of one batch of decodes, each over contexts that are a token longer."""
        load, at, ends = flight.load, now, flight.ends
        if isinstance(self.device, OneLane):
            times = self.device.cost.ahead(load, flight.passes)
        else:
            contexts = (load.decode_context + n * load.decodes for n in range(flight.passes))
            loads = (load._replace(decode_context=context) for context in contexts)
            times = [self.device.seconds({name: each}, self._shares)[name] for each in loads]
        for seconds in times:
            at += seconds if seconds > LEAST_S else LEAST_S
            ends.append(at)
        if not isfinite(at):
            raise ValueError("a device gave a time that is no number")
        self._leap, self._lane, self.end = flight, name, at


def simulate(
    trace: Trace,
    scheduler: Scheduler,
    device: Device,
    setting: Setting,
    *,
    cost: IterationTime | None = None,
    until: float = float("inf"),
    watch: Callable[[float, State], Any] | None = None,
    tuning: Tuning | None = None,
    tuning_cost: TuningTime | None = None,
) -> Outcome:
    """Run a trace to its end, or to `until` seconds, on one engine. cost, tuning, tuning_cost: see `Instance`.

    A training job that is not over when the last request is stays where it is.
    watch: called after each event with the time and the state (tests, pictures).
    """
    record = Outcome.begin(trace)
    instance = Instance(scheduler, device, setting, record, cost, tuning, tuning_cost)
    state = instance.state
    arrivals, prompts, outputs = trace.arrival.tolist(), trace.prompt.tolist(), trace.output.tolist()
    count, upcoming, now = len(trace), 0, 0.0
    next_arrival = arrivals[0]

    while True:
        ends = instance.end <= next_arrival
        at = instance.end if ends else next_arrival
        if at > until or at == float("inf") or (upcoming == count and not state.busy):
            break
        now = at
        if ends:
            instance.complete(now)
        while next_arrival <= now:
            keys = trace.keys[upcoming] if trace.keys is not None else ()
            instance.submit(Job(upcoming, next_arrival, prompts[upcoming], outputs[upcoming], keys), now)
            upcoming += 1
            next_arrival = arrivals[upcoming] if upcoming < count else float("inf")
        instance.start(now)
        if watch is not None:
            watch(now, state)
    record.take_gaps(state.gaps)
    unfinished = state.seqs + len(state.waiting) + count - upcoming
    return record.finish_run(now, unfinished)
