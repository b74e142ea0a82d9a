"""Budgets: read with units, written back, checked; every error points at the character."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.budget import KEYS, Budget, Limit, Objective
from headway.core.errors import BadInput
from headway.core.units import UNITS, Quantity


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency<=6ms/token", Limit("latency", "<=", 6e-3)),
        ("ttft <= 300 ms", Limit("ttft", "<=", 0.3)),
        ("memory<=200MB", Limit("memory", "<=", 2e8)),
        ("size<90MiB", Limit("size", "<=", 90 * 2.0**20)),
        ("quality>=0.98", Limit("quality", ">=", 0.98)),
        ("quality≥98%", Limit("quality", ">=", 0.98)),
        ("throughput>=500tok/s", Limit("throughput", ">=", 500.0)),
        ("cost<=2USD/h", Limit("cost", "<=", 2.0)),
        ("kl<=0.02", Limit("kl", "<=", 0.02)),
        ("energy<=2e-1J", Limit("energy", "<=", 0.2)),
    ],
)
def test_a_limit_is_read_in_base_units(text: str, limit: Limit) -> None:
    (read,) = Budget.parse(text).limits
    assert (read.metric, read.op) == (limit.metric, limit.op)
    assert read.value == pytest.approx(limit.value)


@pytest.mark.parametrize("key", KEYS)
def test_every_keys_example_is_a_budget(key: str) -> None:
    assert Budget.parse(KEYS[key].example).limits[0].metric == key


@pytest.mark.parametrize(
    ("text", "column", "part"),
    [
        ("latency<6", 9, "has no unit"),
        ("latensy<=6ms", 1, "did you mean latency"),
        ("quality>=0.9, size<=5s", 21, "is a time"),
        ("size", 5, "<= or >="),
        ("size<=5XB", 7, "no unit"),
        ("size<=MB", 7, "number"),
        ("size<=1MB, size<=2MB", 11, "twice"),
        ("size<=1MB,,", 11, "expected a limit"),
        ("size=1MB", 5, "<= or >="),
        ("size<=-1MB", 7, "negative"),
        ("size<=1e400MB", 7, "too large"),
    ],
)
def test_an_error_points_at_the_character(text: str, column: int, part: str) -> None:
    with pytest.raises(BadInput, match=f"character {column}:") as caught:
        Budget.parse(text)
    assert part in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_with_a_mend(text: str) -> None:
    try:
        Budget.parse(text)
    except BadInput as error:
        assert error.mend


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-3, 1e3))
def test_a_shown_quantity_is_read_back_to_three_digits(unit: str, number: float) -> None:
    quantity = Quantity.parse(f"{number!r}{unit}")
    again = Quantity.parse(str(quantity).replace(" ", ""))
    assert again.dimension == quantity.dimension
    assert math.isclose(again.value, quantity.value, rel_tol=6e-3, abs_tol=1e-12)


@given(st.sampled_from(["<=", ">="]), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_limit_is_missed_exactly_when_it_does_not_hold(op: str, limit: float, value: float) -> None:
    (violation,) = Budget((Limit("size", op, limit),)).check({"size_bytes": value}) or (None,)
    holds = value <= limit if op == "<=" else value >= limit
    assert (violation is None) == holds
    if violation:
        assert violation.missed_by == pytest.approx(abs(value - limit) / limit)


def test_what_was_not_measured_or_is_no_number_never_holds() -> None:
    budget = Budget.parse("quality>=0.9")
    assert budget.check({})[0].value is None
    assert budget.check({"quality": float("nan")})[0].missed_by == float("inf")


def test_latency_means_time_per_token_where_there_are_tokens() -> None:
    budget = Budget.parse("latency<=1ms")
    assert budget.check({"tpot_s": 2e-3, "latency_s": 1e-4})
    assert not budget.check({"latency_s": 1e-4})
    assert Objective.parse("latency").value({"tpot_s": 1.0, "latency_s": 2.0}) == 1.0
    with pytest.raises(BadInput, match="did you mean size"):
        Objective.parse("siz")
