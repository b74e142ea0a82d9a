"""JSON out is strict, JSON in either parses or names the byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadFile
from headway.core.jsontext import canonical_json, json_text, parse_json, plain


@dataclass
class Point:
    x: float
    where: Path


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_values_survive_the_round_trip_in_both_forms(value: object) -> None:
    assert parse_json(json_text(value).encode(), "t") == value
    assert json.loads(canonical_json(value)) == value


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_raise_bad_file(data: bytes) -> None:
    try:
        parse_json(data, "t")
    except BadFile as error:
        assert 0 <= error.offset <= len(data)


def test_rich_values_become_plain_ones() -> None:
    value = {1: Point(float("nan"), Path("a/b")), "set": {2, 1}, "array": np.float32([1, np.inf]), "t": (np.int64(3),)}
    assert plain(value) == {"1": {"x": None, "where": "a/b"}, "set": [1, 2], "array": [1.0, None], "t": [3]}
    for bad in (b"raw", object(), Point):
        with pytest.raises(TypeError):
            plain(bad)


def test_canonical_form_does_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": [1.0]}) == canonical_json({"a": (1.0,), "b": 1}) == b'{"a":[1.0],"b":1}'


def test_lone_surrogates_can_be_written() -> None:
    assert json.loads(json_text("\ud800")) == "\ud800"


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b'{"a": \xff}', 6),
        ('{"é": x}'.encode(), 7),
        (b"NaN", 0),
        (b"[-Infinity]", 0),
        (b"9" * 5000, 0),
        (b"[" * 10**5, 0),
    ],
)
def test_broken_json_names_the_byte(data: bytes, offset: int) -> None:
    with pytest.raises(BadFile) as caught:
        parse_json(data, "file.json")
    assert caught.value.offset == offset
    assert str(caught.value).startswith("file.json: byte")
