"""Small random load runs for schedulers, and the laws that every run must keep."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from headway.core.registry import systems
from headway.hardware.iteration_time import IterationTime
from headway.serving.outcome import Outcome
from headway.serving.schedulers.base import Limits, Scheduler
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.state import State
from headway.serving.trace import Trace
from headway.serving.tuning import Tuning

COST = IterationTime((0, 8, 64), (0.01, 0.01, 0.08), 1e-6, 1e-6, 1e-5, 1e-5)
SCHEDULERS = sorted(slug for slug, entry in systems().items() if entry.card.slot == "scheduler")


def scheduler(slug: str, **settings: Any) -> Scheduler:
    system: Any = systems()[slug].load()
    made: Scheduler = system.make(system.settings(**settings))
    return made


@st.composite
def traces(draw: st.DrawFn, most: int = 24) -> Trace:
    """A few requests with prompts up to 80 tokens and answers up to 40; some share their beginnings."""
    count = draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from((0.0, 0.01, 0.3)))
    prompt = random.integers(1, 81, count)
    first = random.integers(0, 3, count)
    keys = [[int(f), *(100 * (i + 1) + k for k in range(1, 20))] if f else () for i, f in enumerate(first)]
    pages = [key[: int(p) // 4] for key, p in zip(keys, prompt, strict=True)]
    return Trace(
        np.cumsum(random.exponential(spread, count) if spread else np.zeros(count)),
        prompt,
        random.integers(1, 41, count),
        pages,
    )


SETTINGS = st.builds(
    Setting,
    pages=st.integers(31, 90),  # the longest request needs 31
    page_tokens=st.just(4),
    limits=st.builds(Limits, max_seqs=st.integers(1, 12), watermark=st.sampled_from((0.0, 0.05))),
    prefix=st.booleans(),
)


def run(
    trace: Trace, made: Scheduler, setting: Setting, log: list[Any] | None = None, tuning: Tuning | None = None
) -> Outcome:
    """Simulate, checking after each event that no page is lost and that everything is bounded."""

    def check(now: float, state: State) -> None:
        cached = state.cached_pages
        assert state.held_pages >= 0 and state.held_pages + cached + state.lent <= state.total_pages
        assert 0 <= state.free_pages <= state.total_pages
        assert state.seqs <= setting.limits.max_seqs
        holders = state.holders
        assert len({job.id for job in holders}) == len(holders) == state.seqs
        assert state.held_pages == sum(job.pages - len(job.shared) for job in holders)
        for job in state.decoding:
            assert state.decoding.context_of(job) <= job.pages * state.page_tokens
        if log is not None:
            log.append((now, len(state.waiting), state.seqs, state.free_pages))

    return simulate(trace, made, OneLane(COST), setting, watch=check, tuning=tuning)
