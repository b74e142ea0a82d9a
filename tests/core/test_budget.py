"""Budgets: what they say, what they refuse and where they point, and what misses them by how much."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.budget import METRICS, OBJECTIVES, Budget, BudgetError, Objective
from headway.core.errors import BadInput
from headway.core.units import EXAMPLE


def test_limits_are_read_in_order_with_base_units() -> None:
    budget = Budget.parse(" latency<=6ms/token, quality >= 98% ,\n memory<200MB".replace(",\n", "\n"))
    assert [(limit.metric, limit.op, limit.value) for limit in budget.limits] == [
        ("latency", "<=", 0.006),
        ("quality", ">=", 0.98),
        ("memory", "<", 2e8),
    ]
    assert str(budget) == "latency<=6ms/token, quality >= 98%, memory<200MB"
    assert Budget.parse(str(budget)) == budget
    assert budget.as_json()[0] == {
        "metric": "latency",
        "op": "<=",
        "value": 0.006,
        "unit": "s/token",
        "text": "latency<=6ms/token",
    }


def test_a_key_has_its_limit_or_none() -> None:
    budget = Budget.parse("size<=90MB")
    assert (budget.limit("size"), budget.limit("kl")) == (9e7, None)


def test_an_empty_budget_holds_for_anything() -> None:
    assert Budget.parse("  ") == Budget() and Budget().met({})


@pytest.mark.parametrize("metric", METRICS.values(), ids=str)
def test_every_key_reads_in_every_dimension_it_knows(metric: object) -> None:
    for dimension in metric.measured:  # type: ignore[attr-defined]
        op = "<=" if metric.better == "low" else ">="  # type: ignore[attr-defined]
        limit = Budget.parse(f"{metric.name}{op}{EXAMPLE[dimension]}").limits[0]  # type: ignore[attr-defined]
        assert limit.quantity.dimension == dimension


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("latency<6", 9, "'6' has no unit; write e.g. latency<=6ms/token"),
        ("latancy<=6ms", 0, "unknown key 'latancy'; did you mean 'latency'"),
        ("quality>=0.98,", 13, "a limit is missing"),
        ("quality>=0.9, kl<=0.1,  ", 22, "a limit is missing"),
        ("quality<=0.9", 7, "better when large"),
        ("latency>=6ms", 7, "better when small"),
        ("latency=6ms", 7, "'=' is no limit"),
        ("latency<=6msec", 10, "did you mean 6ms"),
        ("latency<=6 parsecs", 10, "unknown unit 'parsecs'; write e.g. latency<=6ms/token"),
        ("memory <= 200", 13, "has no unit; write e.g. memory<=90MB"),
        ("size<=6ms", 7, "is a time, no bytes"),
        ("kl<=", 4, "kl has no value; write e.g. kl<=0.02"),
        ("quality>=fast", 9, "does not begin with a number"),
        ("kl 5", 0, "has no <= or >="),
        ("size<=1MB, size<=2MB", 10, "limited twice"),
        ("memory<=-5MB", 8, "cannot be negative"),
        ("<=5", 0, "unknown key ''"),
        ("size<==1MB", 4, "'<==' is no limit; write e.g. size<=90MB"),
        ("cost<=$2/h", 6, "does not begin with a number; write e.g. cost<=2USD/h"),
    ],
)
def test_errors_point_at_the_character_and_mend(text: str, position: int, words: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    error = caught.value
    assert words in str(error) and str(error).startswith(f"budget: character {position + 1}: ")
    assert "\n" not in str(error)
    assert error.caret() == f"{text}\n{' ' * position}^"
    assert error.exit_code == 2


@given(st.text(alphabet="latencyqu<>=≤,; .0169msB/tok\n", max_size=30) | st.text(max_size=30))
def test_any_text_is_a_budget_or_a_located_error(text: str) -> None:
    try:
        Budget.parse(text)
    except BudgetError as error:
        assert 0 <= error.position <= len(text)


def test_misses_are_relative_and_in_order() -> None:
    budget = Budget.parse("latency<=6ms/token, quality>=0.98, memory<=200MB")
    latency, quality, memory = budget.check({"tpot_s": 0.0071, "quality": 0.95})
    assert str(latency) == "latency<=6ms/token: 7.1 ms/token here, missed by 18.3%"
    assert quality.missed_by == pytest.approx(0.03 / 0.98)
    assert memory.value is None and memory.missed_by == math.inf and str(memory).endswith("not measured")
    assert json.loads(json.dumps(memory.as_json()))["missed_by"] is None
    assert budget.met({"tpot_s": 0.006, "quality": 0.98, "memory_bytes": 2e8})


def test_strict_limits_exclude_their_end_and_nan_never_holds() -> None:
    budget = Budget.parse("size<1MB")
    assert budget.met({"size_bytes": 1e6 - 1})
    assert [v.missed_by for v in budget.check({"size_bytes": 1e6})] == [0.0]
    assert Budget.parse("kl<=0").check({"kl": 0.5})[0].missed_by == 0.5
    assert Budget.parse("quality>0.5").met({"quality": 0.51})
    assert Budget.parse("quality>=0.5").check({"quality": math.nan})[0].missed_by == math.inf


def test_latency_is_per_token_where_that_is_measured() -> None:
    loose = Budget.parse("latency<=6ms")
    assert loose.met({"tpot_s": 0.005, "latency_s": 1.0})
    assert loose.met({"latency_s": 0.005})
    assert not Budget.parse("latency<=6ms/token").met({"latency_s": 0.005}), "a forward pass has no tokens"


def test_spare_is_positive_inside_and_negative_outside() -> None:
    spare = Budget.parse("latency<=10ms, quality>=0.5, ttft<=1s").spare({"latency_s": 0.008, "quality": 0.4})
    assert spare == {"latency": pytest.approx(0.2), "quality": pytest.approx(-0.2)}


def test_objectives_name_a_measured_key_and_refuse_others() -> None:
    assert OBJECTIVES == ("latency", "memory", "size", "energy")
    latency = Objective.parse(" latency ")
    assert latency.value({"tpot_s": 1.0, "latency_s": 2.0}) == 1.0
    assert latency.value({"latency_s": 2.0}) == 2.0
    assert latency.value({}) == latency.value({"tpot_s": math.nan}) == math.inf
    assert Objective.parse("size").key({}) == "size_bytes"
    with pytest.raises(BadInput, match="did you mean 'memory'"):
        Objective.parse("memmory")
    with pytest.raises(BadInput, match="objectives are"):
        Objective.parse("quality")


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("quality>=2", 9, "can never hold"),
        ("size<=1MB, quality>1", 19, "can never hold"),
        ("top1_agreement>=101%", 16, "can never hold"),
        ("kl<0", 3, "can never hold"),
        ("latency<=0ms/token", 9, "can never hold"),
        ("kl<=0.02x", 8, "no unit 'x'"),
        ("kl<=2%", 5, "no unit '%'"),
        ("quality>=0.98x", 13, "no unit 'x'"),
    ],
)
def test_a_limit_that_can_never_hold_or_has_a_foreign_unit_is_pointed_at(text: str, position: int, what: str) -> None:
    with pytest.raises(BudgetError, match=what) as caught:
        Budget.parse(text)
    assert caught.value.position == position
    assert caught.value.caret().splitlines()[1] == " " * position + "^"


def test_the_best_there_is_may_be_asked_for_and_a_users_own_quality_has_any_scale() -> None:
    assert Budget.parse("quality>=1, kl<=0, top1_agreement>=100%").met({"quality": 1, "kl": 0, "top1_agreement": 1})
    assert Budget.parse("quality>=90", own_quality=True).met({"quality": 91.0})
