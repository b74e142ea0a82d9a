"""The engine against one request at a time: the same tokens whatever runs beside it, and every page comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving_traces import COST, SCHEDULERS, scheduler

from headway.core.errors import BadInput
from headway.llm.language_model import LanguageModel
from headway.llm.sampling import Sampling
from headway.serving.engine import Engine
from headway.serving.request import Event, Request
from headway.serving.schedulers.base import Limits
from headway.serving.schedulers.sarathi_serve import Sarathi, SarathiSettings


def drain(engine: Engine) -> tuple[dict[int, list[int]], dict[int, str]]:
    """(tokens, why it ended) by request; pages are counted after every step."""
    tokens: dict[int, list[int]] = {}
    finishes: dict[int, str] = {}
    for _ in range(100_000):
        if not engine.busy:
            return tokens, finishes
        take(engine.step(), tokens, finishes)
        state = engine.state
        assert state.held_pages == sum(job.pages - len(job.shared) for job in state.holders)
        assert 0 <= state.free_pages <= state.total_pages
    raise AssertionError("the engine does not come to an end")


def take(events: list[Event], tokens: dict[int, list[int]], finishes: dict[int, str]) -> None:
    for event in events:
        assert event.id not in finishes
        if event.token is not None:
            tokens.setdefault(event.id, []).append(event.token)
        if event.finish:
            finishes[event.id] = event.finish


def prompts(model: LanguageModel, count: int, random: np.random.Generator, longest: int = 200) -> list[list[int]]:
    """Random prompts, half of which share a beginning of 130 tokens."""
    vocab = model.architecture.vocab
    shared = random.integers(0, vocab, 130).tolist()
    made = [random.integers(0, vocab, int(n)).tolist() for n in random.integers(1, longest, count)]
    return [shared + prompt if at % 2 else prompt for at, prompt in enumerate(made)]


def alone(model: LanguageModel, request: Request) -> list[int]:
    engine = Engine(model, Sarathi(SarathiSettings()), pages=64, cost=COST, prefix=False)
    id = engine.submit(request)
    return drain(engine)[0][id]


@pytest.mark.parametrize("slug", SCHEDULERS)
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("pages", [10, 200])
def test_tokens_are_those_of_the_request_alone(
    slug: str, prefix: bool, pages: int, tiny_served: LanguageModel, random: np.random.Generator
) -> None:
    wanted = [
        Request(prompt, int(random.integers(1, 90)), ignore_end=True, sampling=Sampling(temperature=t, seed=at))
        for at, (prompt, t) in enumerate(zip(prompts(tiny_served, 14, random), [0.0, 0.8] * 7, strict=True))
    ]
    engine = Engine(tiny_served, scheduler(slug), pages=pages, cost=COST, prefix=prefix, limits=Limits(max_seqs=6))
    ids = [engine.submit(request) for request in wanted]
    tokens, finishes = drain(engine)
    for id, request in zip(ids, wanted, strict=True):
        assert finishes[id] == "length" and len(tokens[id]) == request.max_tokens
        assert tokens[id] == alone(tiny_served, request)
    assert engine.state.free_pages == pages and engine.state.held_pages == 0


@pytest.mark.parametrize("budget", [1, 7, 64, 4096])
def test_chunks_do_not_change_tokens(budget: int, tiny_served: LanguageModel, random: np.random.Generator) -> None:
    wanted = [Request(prompt, 20, ignore_end=True) for prompt in prompts(tiny_served, 6, random)]
    engine = Engine(tiny_served, Sarathi(SarathiSettings(token_budget=budget)), pages=100, cost=COST)
    ids = [engine.submit(request) for request in wanted]
    tokens, _ = drain(engine)
    assert [tokens[id] for id in ids] == [alone(tiny_served, request) for request in wanted]


def test_the_engine_gives_what_generate_gives(tiny_served: LanguageModel) -> None:
    text = "the thing in the other"
    expected = tiny_served.complete(text, max_tokens=30)
    engine = Engine(tiny_served, Sarathi(SarathiSettings()), pages=20, cost=COST)
    id = engine.submit(Request(tiny_served.encode(text), 30))
    tokens, finishes = drain(engine)
    assert tuple(tokens[id]) == expected.tokens and finishes[id] == expected.finish


def test_a_shared_beginning_is_computed_once(tiny_served: LanguageModel, random: np.random.Generator) -> None:
    prompt = random.integers(0, tiny_served.architecture.vocab, 64 * 3 + 1).tolist()
    engine = Engine(tiny_served, Sarathi(SarathiSettings()), pages=50, cost=COST)
    first = engine.submit(Request(prompt, 2, ignore_end=True))
    tokens, _ = drain(engine)
    again = engine.submit(Request(prompt, 2, ignore_end=True))
    job = engine.job(again)
    assert job is not None and job.done == 64 * 3
    later, _ = drain(engine)
    assert later[again] == tokens[first]
    other = engine.submit(Request(prompt, 2, ignore_end=True, salt="somebody else"))
    job = engine.job(other)
    assert job is not None and job.done == 0
    drain(engine)


def test_an_answer_is_reused_by_the_next_turn(tiny_served: LanguageModel, random: np.random.Generator) -> None:
    prompt = random.integers(0, tiny_served.architecture.vocab, 60).tolist()
    engine = Engine(tiny_served, Sarathi(SarathiSettings()), pages=50, cost=COST)
    first = engine.submit(Request(prompt, 100, ignore_end=True))
    tokens, _ = drain(engine)
    second = engine.submit(Request([*prompt, *tokens[first], 5, 6], 3, ignore_end=True))
    job = engine.job(second)
    assert job is not None and job.done == 128


@pytest.mark.parametrize("steps", [0, 1, 3, 9])
def test_cancelled_requests_give_their_pages_back(
    steps: int, tiny_served: LanguageModel, random: np.random.Generator
) -> None:
    engine = Engine(tiny_served, Sarathi(SarathiSettings(token_budget=32)), pages=40, cost=COST)
    ids = [engine.submit(Request(prompt, 50, ignore_end=True)) for prompt in prompts(tiny_served, 8, random)]
    tokens: dict[int, list[int]] = {}
    finishes: dict[int, str] = {}
    for _ in range(steps):
        take(engine.step(), tokens, finishes)
    for id in [*ids, 10_000]:
        engine.cancel(id)
    take(engine.step(), tokens, finishes)
    assert not engine.busy and engine.state.free_pages == 40
    assert finishes == dict.fromkeys(ids, "cancelled")


def test_log_probabilities_are_those_of_the_model(tiny_served: LanguageModel) -> None:
    prompt = [3, 5, 7]
    engine = Engine(tiny_served, Sarathi(SarathiSettings()), pages=20, cost=COST)
    engine.submit(Request(prompt, 4, ignore_end=True, logprobs=3))
    events = []
    while engine.busy:
        events += engine.step()
    fed = list(prompt)
    for event in events:
        logits = tiny_served.logits(fed)[-1].astype(np.float64)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert event.logprobs is not None and event.token is not None
        assert event.logprobs.chosen == pytest.approx(expected[event.token], abs=1e-5)
        assert [t for t, _ in event.logprobs.top] == np.argsort(-expected, kind="stable")[:3].tolist()
        fed.append(event.token)


def test_a_constraint_shapes_the_answer(tiny_served: LanguageModel) -> None:
    class Only:
        def __init__(self) -> None:
            self.left = [9, 4, 2]

        def mask(self, logits: Any) -> Any:
            masked = np.full_like(logits, -np.inf)
            masked[self.left[0]] = logits[self.left[0]]
            return masked

        def accept(self, token: int) -> bool:
            assert token == self.left.pop(0)
            return not self.left

    engine = Engine(tiny_served, Sarathi(SarathiSettings()), pages=20, cost=COST)
    id = engine.submit(Request([1, 2], 50, constraint=Only()))
    tokens, finishes = drain(engine)
    assert tokens[id] == [9, 4, 2] and finishes[id] == "end"


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        (lambda: Request([], 3), "empty"),
        (lambda: Request([1], 0), "at least 1"),
        (lambda: Request([1] * 1000, 25), "1000 tokens of prompt and max_tokens=25 exceed the context of 1024"),
        (lambda: Request([1, 10**6], 3), "outside the vocabulary"),
        (lambda: Request([1], 3, logprobs=21), "logprobs=21"),
    ],
)
def test_bad_requests_are_refused(request_of: Any, words: str, tiny_served: LanguageModel) -> None:
    engine = Engine(tiny_served, Sarathi(SarathiSettings()), pages=20, cost=COST)
    with pytest.raises(BadInput, match=words):
        engine.submit(request_of())
    assert not engine.busy
