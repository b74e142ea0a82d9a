"""Queries that are several calls: stages in order, calls of a stage side by side, the next stage when all are done.

A query is a generator of stages: it is told the finished calls of one and yields the next, so that what follows may
depend on what came out. A trace of queries (JSON lines) is replayed by the same means:

    {"query": "q1", "t": 0.5, "stages": [
      {"name": "candidate", "calls": [{"prompt": 900, "output": 60, "prefix": 500}]}]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.errors import BadInput
from headway.core.files import explained
from headway.serving.dispatch.base import Call
from headway.serving.dispatch.deadlines import StageDeadlines
from headway.serving.job import Job

MOST_STAGES = 1000
"""Stages of one query; a workflow that has more goes in circles."""


@dataclass(frozen=True)
class Ask:
    """One call that a stage makes: lengths in tokens."""

    prompt: int
    output: int
    """At most; in a trace exactly."""
    prefix: int = 0
    """Tokens at the beginning of the prompt that every call of its template has."""
    request: Any = None
    """What a real engine is asked (`Request`)."""
    template: str = ""
    """"": the stage's name and the length of the prefix."""


@dataclass(frozen=True)
class Stage:
    """Calls that run side by side. One without calls is skipped."""

    name: str
    calls: tuple[Ask, ...]


Flow = Generator[Stage, Sequence[Call], Any]
"""Stages as they come; what it returns is the query's value."""


@dataclass(frozen=True)
class Query:
    """A query of a trace. `t`: when it arrives, in seconds."""

    id: str
    t: float
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not any(stage.calls for stage in self.stages):
            raise BadInput(f"query {self.id}: a workflow without any call", "give at least one stage with a call")
        if not (math.isfinite(self.t) and self.t >= 0):
            raise BadInput(f"query {self.id}: t={self.t}", "give seconds from the start, at least 0")
        for stage in self.stages:
            for ask in stage.calls:
                if ask.prompt < 1 or ask.output < 1 or not 0 <= ask.prefix <= ask.prompt:
                    raise BadInput(
                        f"query {self.id}, stage {stage.name}: prompt={ask.prompt}, output={ask.output}, "
                        f"prefix={ask.prefix}",
                        "a call has at least one token of each, and a prefix within its prompt",
                    )

    def flow(self) -> Flow:
        for stage in self.stages:  # noqa: UP028 (a tuple's iterator cannot be sent what `yield from` sends)
            yield stage

    @property
    def calls(self) -> int:
        return sum(len(stage.calls) for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        stages = [
            {
                "name": stage.name,
                "calls": [{"prompt": a.prompt, "output": a.output, "prefix": a.prefix} for a in stage.calls],
            }
            for stage in self.stages
        ]
        return {"query": self.id, "t": self.t, "stages": stages}


@dataclass(slots=True, eq=False)
class Running:
    """A query that has arrived, and what became of it."""

    id: str
    arrival: float
    flow: Flow
    remaining: list[str] = field(default_factory=list)
    """Stages that are expected after the present one."""
    begun: bool = False
    stage: str = ""
    calls: list[Call] = field(default_factory=list)
    """Of the present stage."""
    open: int = 0
    done: list[Stage] = field(default_factory=list)
    """With the lengths that were true."""
    finished: float | None = None
    failed: str = ""
    value: Any = None

    @property
    def latency(self) -> float:
        """Seconds from its arrival to its end; infinite while there is none, and where it failed."""
        return math.inf if self.finished is None or self.failed else self.finished - self.arrival

    def record(self) -> Query:
        """As a line of a trace."""
        return Query(self.id, self.arrival, tuple(self.done))


class Workflows:
    """Queries as a fleet's `Work`. deadlines: what each stage gets; None: calls have none."""

    def __init__(
        self,
        queries: Iterable[tuple[str, float, Callable[[], Flow]]],
        deadlines: StageDeadlines | None = None,
        page_tokens: int = 16,
        finished: Callable[[Running, float], object] | None = None,
    ) -> None:
        """queries: (id, arrival in seconds, what makes its stages). page_tokens: of the engines, for shared prefixes.
        finished: told of each query that is over.
        """
        self.queries = sorted(queries, key=lambda query: query[1])
        self.runs: list[Running] = []
        self.deadlines, self.page_tokens, self.finished = deadlines, page_tokens, finished
        self._ids = 0

    @classmethod
    def of(cls, trace: Sequence[Query], *more: Any, **others: Any) -> Workflows:
        """A trace's."""
        return cls([(query.id, query.t, query.flow) for query in trace], *more, **others)

    def arrivals(self) -> Iterator[tuple[float, Call]]:
        for id, arrival, make in self.queries:
            run = Running(id, arrival, make(), self.deadlines.begin() if self.deadlines is not None else [])
            self.runs.append(run)
            yield from ((arrival, call) for call in self._advance(run, arrival))

    def done(self, call: Call, now: float) -> Sequence[Call]:
        run: Running = call.query
        run.open -= 1
        if call.job.first is None:
            run.failed = run.failed or f"stage {run.stage}: {call.job.reason or 'refused'}"
        if run.open:
            return ()
        if run.failed:
            self._end(run, now)
            return ()
        return self._advance(run, now)

    def _advance(self, run: Running, now: float) -> list[Call]:
        """The calls of its next stage that has any."""
        for _ in range(MOST_STAGES):
            try:
                stage = run.flow.send(run.calls) if run.begun else next(run.flow)
                run.begun = True
            except StopIteration as over:
                self._close(run)
                run.value = over.value
                self._end(run, now)
                return []
            self._close(run)
            run.stage = stage.name
            if stage.calls:
                break
        if len(run.done) >= MOST_STAGES or not stage.calls:
            raise BadInput(f"query {run.id} has more than {MOST_STAGES} stages", "its workflow must come to an end")
        deadline = None
        if self.deadlines is not None:
            deadline = self.deadlines.next(run.remaining, stage.name, run.arrival, now)
        run.calls = [self._call(run, ask, now, deadline) for ask in stage.calls]
        run.open = len(run.calls)
        return run.calls

    def _close(self, run: Running) -> None:
        """Note the stage that is over."""
        if run.calls:
            asks = tuple(Ask(c.job.prompt, max(c.job.generated, 1), c.prefix, template=c.template) for c in run.calls)
            run.done.append(Stage(run.stage, asks))
            run.calls = []

    def _end(self, run: Running, now: float) -> None:
        run.finished = now
        run.flow.close()
        if self.finished is not None:
            self.finished(run, now)

    def _call(self, run: Running, ask: Ask, now: float, deadline: float | None) -> Call:
        id, self._ids = self._ids, self._ids + 1
        template = ask.template or f"{run.stage}/{ask.prefix}"
        keys = [(template, page) for page in range(ask.prefix // self.page_tokens)]
        keys += [(id, page) for page in range(ask.prompt // self.page_tokens - len(keys))]
        job = Job(id, now, ask.prompt, ask.output, keys, deadline, run.stage)
        return Call(job, run, ask.prefix, template, ask.request)


# Figures


def lengths(queries: Iterable[Query]) -> list[tuple[str, int, int]]:
    """(stage, prompt, output) of every call, in tokens."""
    return [(stage.name, ask.prompt, ask.output) for q in queries for stage in q.stages for ask in stage.calls]


def latencies(runs: Sequence[Running]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds by query; infinite where it failed or is not over."""
    return np.array([run.latency for run in runs], float)


def quantile(runs: Sequence[Running], q: float = 0.95) -> float:
    """The deadline that this share of the queries would have met: an order statistic, so that infinity may stand in."""
    found = np.sort(latencies(runs))
    return float(found[min(max(math.ceil(q * len(found)) - 1, 0), len(found) - 1)])


def attainment(runs: Sequence[Running], slo_s: float) -> float:
    """Share of the queries that were done within `slo_s` seconds."""
    return float((latencies(runs) <= slo_s).mean())


# Files

FORMAT = 'write {"query": id, "t": seconds, "stages": [{"name": ..., "calls": [{"prompt": n, "output": n}, ...]}, ...]}'


def read_queries(path: str | Path) -> list[Query]:
    """A trace of queries. Raises `BadInput` naming the line and what is wrong with it."""
    path = Path(path)
    with explained(path):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise BadInput(f"{path} is no text", "give a file of JSON lines, a query each") from None
    found = []
    for at, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_query(json.loads(line), f"q{at}"))
            except BadInput as error:
                raise BadInput(f"{path}: line {at}: {error.what}", error.mend) from None
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BadInput(f"{path}: line {at}: not a query ({error!r:.60})", FORMAT) from None
    if not found:
        raise BadInput(f"{path} holds no query", "give a file of JSON lines, a query each")
    return sorted(found, key=lambda query: query.t)


def _query(document: Mapping[str, Any], default: str) -> Query:
    stages = []
    for stage in document["stages"]:
        asks = [Ask(_count(c, "prompt"), _count(c, "output"), _count(c, "prefix", 0)) for c in stage["calls"]]
        if not isinstance(stage["name"], str):
            raise TypeError("name")
        stages.append(Stage(stage["name"], tuple(asks)))
    t = document["t"]
    if isinstance(t, bool) or not isinstance(t, int | float):
        raise TypeError(f"t={t!r}")
    return Query(str(document.get("query", default)), float(t), tuple(stages))


def _count(call: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = call[key] if default is None else call.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{key}={value!r}")
    return value


def write_queries(path: str | Path, queries: Iterable[Query]) -> None:
    """The same as JSON lines."""
    from headway.core.files import atomic_write_text

    atomic_write_text(path, "".join(json.dumps(query.as_json()) + "\n" for query in queries))


def at_rate(queries: Sequence[Query], rate: float) -> list[Query]:
    """The same queries in the same pattern, arriving at `rate` per second. Raises `BadInput` for no rate."""
    if not rate > 0:
        raise BadInput(f"a rate of {rate} queries per second", "it must be above 0")
    span = max(queries[-1].t - queries[0].t, 1e-9) if len(queries) > 1 else 1.0
    factor = (len(queries) - 1) / span / rate if len(queries) > 1 else 1.0
    return [replace(query, t=(query.t - queries[0].t) * factor) for query in queries]
