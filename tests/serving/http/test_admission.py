"""Admission by hand-made cases: who is ahead, what it costs, and that nothing is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_traces import COST

from headway.serving.http.admission import Admission
from headway.serving.http.errors import ApiError
from headway.serving.messages import Ready, Stats


def admission(bound_s: float = 1.0, max_seqs: int = 4, pages: int = 100) -> Admission:
    ready = Ready("language", "m", [], 1024, 1, pages=pages, page_tokens=64, max_seqs=max_seqs, cost=COST.as_json())
    return Admission(ready, bound_s)


def test_an_empty_engine_takes_anything() -> None:
    admission(bound_s=0.0).check(1000)


def test_the_wait_grows_with_the_prompts_ahead_and_ends_with_their_first_token() -> None:
    one = admission()
    first = one.enter(500, 10)
    wait = one.wait_s()
    second = one.enter(500, 10)
    assert one.wait_s() == pytest.approx(2 * wait)
    one.token(first)
    assert one.wait_s() == pytest.approx(wait)
    one.token(second)
    assert one.wait_s() == 0.0


def test_a_full_queue_says_when_to_come_back() -> None:
    full = admission(bound_s=0.5, max_seqs=2)
    for _ in range(40):
        full.enter(100, 50)
    with pytest.raises(ApiError) as refused:
        full.check(0)
    assert refused.value.status == 429
    assert int(refused.value.headers["retry-after"]) >= 1


def test_the_prediction_follows_a_machine_that_is_slower_than_it_was() -> None:
    one = admission()
    one.enter(500, 10)
    before = one.wait_s()
    for _ in range(500):
        one.observe(Stats(1, 8, 0.1, 0, 0, 8, 50, 8, 0, 0))  # ten times what the fit says
    assert one.wait_s() > 5 * before


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 100), st.integers(0, 5)), max_size=30))
def test_when_all_have_left_nothing_is_remembered(answers: list[tuple[int, int, int]]) -> None:
    one = admission()
    tickets = [one.enter(prompt, most) for prompt, most, _ in answers]
    for ticket, (_, most, tokens) in zip(tickets, answers, strict=True):
        for _ in range(min(tokens, most)):
            one.token(ticket)
        assert one.wait_s() >= 0.0
        one.leave(ticket)
        one.leave(ticket)
    assert one.count == 0 and one.wait_s() == 0.0
