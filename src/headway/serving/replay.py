"""Replay a trace on the real engine, in real time: arrivals come when they come, whatever the engine does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from headway.core.errors import BadInput
from headway.core.progress import Progress
from headway.hardware.iteration_time import Load
from headway.llm.native import PAGE_TOKENS
from headway.serving.engine import Engine
from headway.serving.job import Job
from headway.serving.outcome import Outcome
from headway.serving.request import Request
from headway.serving.trace import Trace


@dataclass
class Replay:
    """What a run gave, and the tokens of every request by its place in the trace."""

    outcome: Outcome
    tokens: dict[int, list[int]] = field(default_factory=dict)


def requests(trace: Trace, vocab: int, seed: int = 0) -> list[Request]:
    """A request of random tokens for each row of a trace; rows that share page ids share those tokens."""
    random = np.random.default_rng(seed)
    pages: dict[tuple[int, ...], list[int]] = {}
    made = []
    for at, (prompt, output) in enumerate(zip(trace.prompt.tolist(), trace.output.tolist(), strict=True)):
        tokens: list[int] = []
        for n in range(len(trace.keys[at]) if trace.keys is not None else 0):
            chain = tuple(trace.keys[at][: n + 1])  # type: ignore[index]
            if chain not in pages:
                pages[chain] = random.integers(0, vocab, PAGE_TOKENS).tolist()
            tokens += pages[chain]
        tokens = tokens[:prompt] + random.integers(0, vocab, max(prompt - len(tokens), 0)).tolist()
        made.append(Request(tokens, output, ignore_end=True))
    return made


def replay(
    engine: Engine,
    trace: Trace,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    watch: Callable[[float, Engine], object] | None = None,
    most_queue: int = 1 << 60,
) -> Replay:
    """Run a whole trace; times are those of the engine's clock, from the first moment of the run.

    Raises `BadInput` for an engine that is not idle.
    """
    if engine.busy:
        raise BadInput("the engine has requests", "replay a trace on an idle engine")
    wanted = requests(trace, engine.model.architecture.vocab, seed)
    run = Replay(Outcome.begin(trace))
    record = run.outcome
    arrivals = trace.arrival.tolist()
    gaps: list[tuple[float, int]] = []
    places: dict[int, tuple[int, Job]] = {}
    upcoming = 0
    start = engine.clock()
    with (progress or Progress()).task("replaying", len(trace)) as task:
        while upcoming < len(trace) or engine.busy:
            now = engine.clock() - start
            while upcoming < len(trace) and arrivals[upcoming] <= now:
                if len(engine.state.waiting) < most_queue:
                    id = engine.submit(wanted[upcoming], start + arrivals[upcoming])
                    job = engine.job(id)
                    assert job is not None
                    places[id] = (upcoming, job)
                else:
                    record.rejected += 1
                upcoming += 1
            if not engine.active:
                time.sleep(max(arrivals[upcoming] - (engine.clock() - start), 0.0))
                continue
            begin = engine.clock()
            events = engine.step()
            record.batch(begin, Load(engine.rows), engine.clock() - begin)
            gaps += engine.state.gaps
            for event in events:
                at, job = places[event.id]
                if event.token is not None:
                    run.tokens.setdefault(at, []).append(event.token)
                if event.finish:
                    record.end(job, at)
                    task.advance()
            if watch is not None:
                watch(engine.clock() - start, engine)
    record.take_gaps(gaps)
    record.finish_run(engine.clock() - start, 0)
    return run
