"""Dataclasses from JSON: right values pass, wrong ones name their path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.decode import check_schema, decode
from headway.core.errors import BadInput


@dataclass(frozen=True)
class Inner:
    n: int
    x: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool
    inner: Inner
    many: tuple[Inner, ...] = ()
    numbers: tuple[float, ...] = ()
    items: list[Inner] = field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    table: Mapping[str, float] = field(default_factory=dict)
    maybe: int | None = None
    way: Literal["up", "down"] = "up"
    anything: Any = None


INNER = st.builds(Inner, st.integers(), st.floats(allow_nan=False))
OUTER = st.builds(
    Outer,
    st.text(),
    st.booleans(),
    INNER,
    st.lists(INNER).map(tuple),
    st.lists(st.floats(allow_nan=False)).map(tuple),
    st.lists(INNER),
    st.tuples(st.integers(), st.text()),
    st.dictionaries(st.text(), st.floats(allow_nan=False)),
    st.none() | st.integers(),
    st.sampled_from(["up", "down"]),
    st.none() | st.lists(st.integers()),
)


@given(OUTER)
def test_what_was_plain_comes_back_equal(value: Outer) -> None:
    assert decode(Outer, asdict(value), "it") == value


GOOD: dict[str, Any] = {"name": "a", "flag": True, "inner": {"n": 1}}


def test_defaults_fill_what_is_absent_and_integers_are_floats_where_expected() -> None:
    found = decode(Outer, {**GOOD, "inner": {"n": 1, "x": 2}}, "it")
    assert found.inner == Inner(1, 2.0) and isinstance(found.inner.x, float)


def test_null_is_a_number_that_was_not_finite_unless_null_is_allowed() -> None:
    found = decode(Outer, {**GOOD, "numbers": [1, None], "maybe": None}, "it")
    assert found.numbers[0] == 1.0 and math.isnan(found.numbers[1])
    assert found.maybe is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "it.name: str is expected, not int"),
        ({"flag": 1}, "it.flag: bool is expected, not int"),
        ({"inner": {"n": True}}, "it.inner.n: int is expected, not bool"),
        ({"inner": {"n": 1.5}}, "it.inner.n: int is expected, not float"),
        ({"inner": {"n": 1, "x": "2"}}, "it.inner.x: float is expected, not str"),
        ({"inner": {"n": 1, "x": 10**400}}, "it.inner.x: the number is too large"),
        ({"inner": {}}, "it.inner: field 'n' is missing"),
        ({"inner": []}, "it.inner: a JSON object is expected, not list"),
        ({"many": [{"n": 1}, {"m": 1}]}, "it.many[1]: unknown field 'm'; fields are: n, x"),
        ({"items": [3]}, "it.items[0]: a JSON object is expected, not int"),
        ({"numbers": [0.5, "x"]}, "it.numbers[1]: float is expected, not str"),
        ({"many": "ab"}, "it.many: a list is expected, not str"),
        ({"pair": [1]}, "it.pair: 2 items are expected, not 1"),
        ({"pair": [1, None]}, "it.pair[1]: str is expected, not null"),
        ({"table": [1]}, "it.table: a JSON object is expected, not list"),
        ({"table": {"a": "b"}}, "it.table.a: float is expected, not str"),
        ({"maybe": "x"}, "it.maybe: null is expected, not str"),
        ({"way": "left"}, "it.way='left'; it is one of: up, down"),
        ({"surprise": 1}, "it: unknown field 'surprise'; fields are: name, flag"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        decode(Outer, {**GOOD, **change}, "it")
    assert str(caught.value).startswith(message)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(BadInput, match="not null"):
        decode(Outer, None, "it")


@pytest.mark.parametrize("schema", [None, 0, -1, "1", 1.0, True])
def test_a_schema_is_a_positive_integer(schema: object) -> None:
    with pytest.raises(BadInput, match="no version number"):
        check_schema({"schema": schema}, 1, "it")


def test_a_newer_schema_asks_for_an_upgrade() -> None:
    assert check_schema({"schema": 1}, 2, "it") == 1
    with pytest.raises(BadInput, match="pip install -U headway"):
        check_schema({"schema": 3}, 2, "it")
    with pytest.raises(BadInput, match="not list"):
        check_schema([], 2, "it")
