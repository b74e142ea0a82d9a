"""Invariance: tokens and logits of a request are the same bits whatever batch, threads, chunks and prefix cache.

A system that breaks this says so in its card; none does so far, the ones that change keys and values included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from serving_traces import COST

import headway
from headway.llm.language_model import LanguageModel
from headway.serving.engine import Engine
from headway.serving.request import Event, Request
from headway.serving.schedulers.base import Limits
from headway.serving.schedulers.sarathi_serve import Sarathi, SarathiSettings

BATCHES, THREADS, CHUNKS, PREFIX = (1, 2, 7, 16), (1, 2), (1, 17, 64, 256), (False, True)
RECIPES = ("", "int8", "kv-int8", "kv-int4", "kv-int4(keys=4)")
ANSWER = 6


def requests(model: LanguageModel, count: int) -> list[Request]:
    """Half of them share their first 130 tokens; log-probabilities show every bit of the logits that matter."""
    random = np.random.default_rng(19)
    vocab = model.architecture.vocab
    shared = random.integers(0, vocab, 130).tolist()
    made = []
    for at, length in enumerate(random.integers(1, 120, count).tolist()):
        prompt = random.integers(0, vocab, length).tolist()
        made.append(Request(shared + prompt if at % 2 else prompt, ANSWER, ignore_end=True, logprobs=5))
    return made


def answers(model: LanguageModel, wanted: list[Request], batch: int, chunk: int, prefix: bool) -> list[list[Event]]:
    made = Sarathi(SarathiSettings(token_budget=chunk + batch - 1))  # decodes take one token of the budget each
    limits = Limits(max_seqs=batch)
    engine = Engine(model, made, pages=40 + 8 * batch, cost=COST, prefix=prefix, limits=limits)
    ids = [engine.submit(request) for request in wanted]
    found: dict[int, list[Event]] = {id: [] for id in ids}
    while engine.busy:
        for event in engine.step():
            found[event.id].append(event)
    return [found[id] for id in ids]


def check(model: LanguageModel, count: int, figures: Callable[..., None]) -> None:
    for recipe in RECIPES:
        changed = headway.apply(recipe, model, threads=1) if recipe else model
        assert isinstance(changed, LanguageModel)
        wanted = requests(changed, count)
        expected: list[list[tuple[object, object]]] | None = None
        runs = 0
        for threads in THREADS:
            runtime = changed.with_runtime("native", threads)
            for batch, chunk, prefix in itertools.product(BATCHES, CHUNKS, PREFIX):
                events = answers(runtime, wanted, batch, chunk, prefix)
                seen = [[(event.token, event.logprobs) for event in of] for of in events]
                expected = expected or seen
                assert seen == expected, (recipe, threads, batch, chunk, prefix)
                runs += 1
        figures(recipe=recipe or "unmodified", settings=runs, prompts=count)


def test_six_prompts(tiny_served: LanguageModel, figures: Callable[..., None]) -> None:
    check(tiny_served, 6, figures)


@pytest.mark.nightly
def test_three_hundred_prompts(tiny_served: LanguageModel, figures: Callable[..., None]) -> None:
    check(tiny_served, 300, figures)
