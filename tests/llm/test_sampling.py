"""Sampling keeps exactly the tokens its rules leave, draws them in proportion, and can be repeated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.llm.language_model import parse_sampling
from headway.llm.sampling import Sampler, Sampling, StopFinder, candidates, penalised

floats = st.floats(-20, 20, width=32)
logits_lists = st.lists(floats, min_size=1, max_size=40)


CLOSE = 1e-9
"""Relative distance at which a rule may fall either way: the order of operations decides the last bits."""


def kept_by_hand(logits: np.ndarray, s: Sampling) -> tuple[dict[int, float], set[int]]:
    """Token -> probability, by sorting everything and applying the rules in turn; and tokens on a rule's edge."""
    weights = [math.exp(float(x) / s.temperature - float(logits.max()) / s.temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if s.top_k:
        order = order[: s.top_k]
    edge = {i for i in order if weights[i] < 1e-300 or abs(weights[i] - s.min_p) < CLOSE * s.min_p}
    order = [i for i in order if weights[i] > 0.0]
    total, reached, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if s.top_p < 1.0 and kept and abs(reached - s.top_p * total) < CLOSE * total:
            edge.add(i)
        if s.top_p < 1.0 and kept and reached >= s.top_p * total:
            break
        kept.append(i)
        reached += weights[i]
    kept = [i for i in kept if weights[i] >= s.min_p] or kept[:1]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}, edge


@given(
    logits_lists,
    st.floats(0.05, 5),
    st.integers(0, 50),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
@settings(max_examples=500, deadline=None)
def test_the_rules_keep_what_applying_them_by_hand_keeps(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.array(values, np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    tokens, weights = candidates(logits, sampling)
    expected, edge = kept_by_hand(logits, sampling)
    found = dict(zip(tokens.tolist(), (weights / weights.sum()).tolist(), strict=True))
    assert set(found) ^ set(expected) <= edge
    if set(found) == set(expected):
        assert found == pytest.approx(expected, rel=1e-6)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=3), [])
    counts = np.bincount([sampler.pick(logits) for _ in range(8000)], minlength=4) / 8000
    assert counts == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.02)


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)

    def drawn(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=seed), [])
        return [sampler.pick(row) for row in logits]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = np.array([0.0, 2.0, 2.0], np.float32)
    assert Sampler(Sampling(), []).pick(logits) == 1
    assert Sampler(Sampling(temperature=1e-30), []).pick(logits) in (1, 2)
    assert Sampler(Sampling(temperature=5.0, top_k=1), []).pick(logits) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300])
def test_the_least_temperatures_are_greedy(temperature: float) -> None:
    logits = np.array([1.0, 3.0, -np.inf, 2.0], np.float32)
    assert {Sampler(Sampling(temperature=temperature, seed=seed), []).pick(logits) for seed in range(20)} == {1}


def test_the_repetition_penalty_is_that_of_ctrl_and_counts_the_prompt() -> None:
    logits = np.array([2.0, -1.0, 1.9, 0.0], np.float32)
    assert penalised(logits, {0, 1}, 2.0).tolist() == [1.0, -2.0, np.float32(1.9), 0.0]
    sampler = Sampler(Sampling(repetition_penalty=2.0), [0])
    assert [sampler.pick(logits) for _ in range(3)] == [2, 0, 0]
    assert logits[0] == 2.0


def test_logits_that_are_not_numbers_are_refused() -> None:
    bad = np.array([0.0, np.nan, 1.0], np.float32)
    for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2)):
        with pytest.raises(BadInput, match="not a number"):
            Sampler(sampling, []).pick(bad)


WRONG: list[dict[str, Any]] = [
    {name: value}
    for name, values in {
        "temperature": [-0.1, 101, math.nan, math.inf, "1", None, True],
        "top_k": [-1, 1 << 31, 1.5, "3", None, True],
        "top_p": [-0.1, 1.1, math.nan, None],
        "min_p": [-0.1, 1.1, math.nan],
        "repetition_penalty": [0, -1, 101, math.nan],
        "seed": [-1, 1 << 63, 0.5, None],
        "stop": [None, 3, [""], ["x" * 1025], ["a"] * 65, [3]],
    }.items()
    for value in values
]


@pytest.mark.parametrize("wrong", WRONG, ids=[f"{k}={str(v)[:20]}" for w in WRONG for k, v in w.items()])
def test_every_parameter_is_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as error:
        parse_sampling(wrong)
    assert len(str(error.value)) < 300


def test_an_unknown_parameter_names_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no sampling parameter 'topk'; parameters are: temperature, top_k"):
        parse_sampling({"topk": 3})


@given(
    st.text("abx", max_size=30),
    st.lists(st.text("abx", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 5), max_size=30),
)
@settings(max_examples=500, deadline=None)
def test_stop_texts_are_found_wherever_the_tokens_are_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    """What comes out is the text before the earliest stop that is complete first, however the text arrives."""
    finder, out, at = StopFinder(stops), "", 0
    for cut in [*cuts, len(text)]:
        out += finder.feed(text[at : at + cut])
        at += cut
        assert text.startswith(out)
    out += finder.end()
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        assert not finder.found
        assert out == text
    else:
        assert finder.found
        assert not any(stop in out for stop in stops)
        assert any(text.startswith(out + stop) for stop in stops)


def test_text_that_may_begin_a_stop_is_held_back_and_no_more() -> None:
    finder = StopFinder(["END"])
    assert finder.feed("some E") == "some "
    assert finder.feed("N") == ""
    assert finder.feed("x") == "ENx"
    assert finder.feed("EN") == ""
    assert finder.feed("D more") == ""
    assert finder.found
    assert finder.feed("more") == finder.end() == ""
