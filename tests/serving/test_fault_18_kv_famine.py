"""KV famine: pages for little more than one request, many clients; all finish with the tokens of a request alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from serving_traces import COST, SCHEDULERS, scheduler

from headway.llm.language_model import LanguageModel
from headway.llm.native import PAGE_TOKENS
from headway.serving.engine import Engine
from headway.serving.request import Request
from headway.serving.schedulers.base import Limits
from headway.serving.schedulers.sarathi_serve import Sarathi, SarathiSettings

CLIENTS, LONGEST = 32, 512
PAGES = int(1.2 * LONGEST / PAGE_TOKENS + 1)
RESERVE = ("orca-like", "static-batching")
"""They take pages for the longest answer at admission and preempt nobody."""
IDLE_STEPS = 3


def requests(model: LanguageModel, count: int) -> list[Request]:
    """Up to `LONGEST` tokens each, the first one that long; many answers outgrow what their prompts took."""
    random = np.random.default_rng(18)
    lengths = [(200, LONGEST - 200)] + [(int(a), int(b)) for a, b in random.integers(1, 130, (count - 1, 2))]
    vocab = model.architecture.vocab
    return [Request(random.integers(0, vocab, a).tolist(), b, ignore_end=True) for a, b in lengths]


def served(engine: Engine, wanted: list[Request]) -> tuple[list[list[int]], int]:
    """(tokens, preemptions) with `CLIENTS` clients, each of which asks again when it is answered."""
    waiting, places = list(enumerate(wanted)), {}
    tokens: list[list[int]] = [[] for _ in wanted]
    preemptions = idle = 0
    while waiting or places:
        while waiting and len(places) < CLIENTS:
            at, request = waiting.pop(0)
            id = engine.submit(request)
            places[id] = (at, engine.job(id))
        events = engine.step()
        idle = 0 if events or engine.rows else idle + 1
        assert idle < IDLE_STEPS
        state = engine.state
        assert state.held_pages + state.cached_pages + state.unused_pages == state.total_pages
        for event in events:
            at, job = places[event.id]
            if event.token is not None:
                tokens[at].append(event.token)
            if event.finish:
                assert event.finish == "length" and job is not None
                preemptions += job.preemptions
                del places[event.id]
    return tokens, preemptions


def alone(model: LanguageModel, wanted: list[Request]) -> list[list[int]]:
    engine = Engine(model, Sarathi(SarathiSettings()), pages=64, cost=COST, prefix=False)
    found = []
    for request in wanted:
        engine.submit(request)
        found.append([event.token for event in iter_steps(engine)])
    return found  # type: ignore[return-value]


def iter_steps(engine: Engine):  # type: ignore[no-untyped-def]
    while engine.busy:
        yield from engine.step()


def check(model: LanguageModel, count: int, least: int, figures: Callable[..., None]) -> None:
    wanted = requests(model, count)
    expected = alone(model, wanted)
    for slug in SCHEDULERS:
        engine = Engine(model, scheduler(slug), pages=PAGES, cost=COST, limits=Limits(max_seqs=CLIENTS))
        tokens, preemptions = served(engine, wanted)
        engine.close()
        assert tokens == expected
        figures(scheduler=slug, requests=count, pages=PAGES, preemptions=preemptions)
        assert preemptions == 0 if slug in RESERVE else preemptions >= least


def test_forty_requests_of_many_clients(tiny_served: LanguageModel, figures: Callable[..., None]) -> None:
    check(tiny_served, 40, 1, figures)  # with two lanes it depends on their timing how many there are


@pytest.mark.nightly
def test_five_hundred_requests_of_many_clients(tiny_served: LanguageModel, figures: Callable[..., None]) -> None:
    check(tiny_served, 500, 100, figures)
