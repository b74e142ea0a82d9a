"""Site patterns: a shell's, with runs of numbers; compressed patterns select exactly what they came from."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.core.patterns import compress, matches

NAMES = [f"layers.{i}.{role}" for i in range(13) for role in ("a.q", "a.k", "m.up")] + ["head", "embedding"]


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_compressed_patterns_match_exactly_the_chosen(chosen: set[str]) -> None:
    found = compress(sorted(chosen), NAMES)
    assert {name for name in NAMES if matches(name, found)} == chosen
    assert len(found) <= 5


@given(st.text("ab.*?3", max_size=8), st.text("ab.3", max_size=8))
def test_stars_and_marks_are_a_shells(pattern: str, name: str) -> None:
    assert matches(name, [pattern]) == fnmatchcase(name, pattern)


@given(st.text(max_size=12))
def test_any_name_compresses_to_itself(name: str) -> None:
    assert matches(name, compress([name], [name]))


def test_runs_and_words() -> None:
    assert [n for n in range(20) if matches(f"l.{n}.x", ["l.{1,4-6,13}.x"])] == [1, 4, 5, 6, 13]
    assert matches("a.q", ["a.{q,k}"])
    assert matches("a.q", ["a.[qk]"])
    assert not matches("a.q", ["a.[!qk]"])
    assert compress([f"l.{n}.x" for n in (0, 1, 2, 3, 7, 9, 10)], [f"l.{n}.x" for n in range(12)]) == [
        "l.{0-3,7,9,10}.x"
    ]


@pytest.mark.parametrize("pattern", ["a[b", "a{b", "l.{5-2}", "l.{0-999999}"])
def test_a_pattern_that_cannot_be_read_is_refused(pattern: str) -> None:
    with pytest.raises(BadInput):
        matches("a", [pattern])
