"""Quantities read what people write and show what people read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.core.units import BASE, EXAMPLE, UNITS, Quantity, QuantityError, nearest, show


@pytest.mark.parametrize(
    ("text", "value", "dimension"),
    [
        ("6ms/token", 0.006, "time per token"),
        ("300 ms", 0.3, "time"),
        ("5us", 5e-6, "time"),
        ("5µs/tok", 5e-6, "time per token"),
        ("1.5GiB", 1.5 * 2**30, "bytes"),
        ("90MB", 90e6, "bytes"),
        ("1KB", 1000.0, "bytes"),
        ("1KiB", 1024.0, "bytes"),
        (" 500 tok/s ", 500.0, "tokens per second"),
        ("60 tokens/min", 1.0, "tokens per second"),
        ("20 images/s", 20.0, "per second"),
        ("2USD/h", 2.0, "money per hour"),
        ("$2/h", None, None),
        ("0.001$/s", 3.6, "money per hour"),
        ("50mJ/token", 0.05, "energy per token"),
        ("1Wh", 3600.0, "energy"),
        ("98%", 0.98, "ratio"),
        ("95%", 0.95, "ratio"),
        ("7us", 7e-6, "time"),
        (".5", 0.5, "ratio"),
        ("1_000e-3x", 1.0, "ratio"),
    ],
)
def test_people_write_quantities_like_this(text: str, value: float | None, dimension: str | None) -> None:
    if value is None:
        with pytest.raises(QuantityError):
            Quantity.parse(text)
        return
    found = Quantity.parse(text)
    assert found.value == pytest.approx(value, rel=1e-15)
    assert found.dimension == dimension


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(sorted(BASE)))
def test_the_exact_form_reads_back_bit_for_bit(value: float, dimension: str) -> None:
    quantity = Quantity(value, dimension)
    assert Quantity.parse(quantity.exact()) == quantity


@given(st.floats(1e-9, 1e12), st.sampled_from(sorted(BASE)))
def test_the_shown_form_keeps_three_figures(value: float, dimension: str) -> None:
    found = Quantity.parse(str(Quantity(value, dimension)))
    assert found.dimension == dimension
    assert math.isclose(found.value, value, rel_tol=5.1e-3 if value >= 1e-5 else 6e-3)


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_located_error(text: str) -> None:
    try:
        assert math.isfinite(Quantity.parse(text).value)
    except QuantityError as error:
        assert 0 <= error.position <= len(text)
        assert isinstance(error, BadInput)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("6mb", 1, "did you mean 6MB"),
        (" 6 parsecs", 2, "units are"),
        ("fast", 0, "does not begin with a number"),
        ("1e999s", 0, "too large"),
    ],
)
def test_errors_point_and_mend(text: str, position: int, words: str) -> None:
    with pytest.raises(QuantityError, match=words) as caught:
        Quantity.parse(text)
    assert caught.value.position == position


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (98362432, "B", "98.4 MB"),
        (0.00587, "s/token", "5.87 ms/token"),
        (0.9999, "s", "1 s"),
        (999.6e-6, "s", "1 ms"),
        (123456.0, "", "123456"),
        (0.000123, "", "0.000123"),
        (1e-9, "", "1e-09"),
        (0.0, "s", "0 s"),
        (0.0, "", "0"),
        (1e-12, "s", "0.001 ns"),
        (-0.05, "J/token", "-50 mJ/token"),
        (1023.4, "tok/s", "1023 tok/s"),
        (float("inf"), "s", "inf s"),
        (float("nan"), "", "nan"),
    ],
)
def test_values_are_shown_with_the_prefix_people_use(value: float, unit: str, text: str) -> None:
    assert show(value, unit) == text


def test_every_dimension_has_a_base_unit_and_an_example_of_itself() -> None:
    for dimension, unit in BASE.items():
        assert UNITS[unit] == (dimension, 1.0)
        assert Quantity.parse(EXAMPLE[dimension]).dimension == dimension


def test_nearest_prefers_case_and_knows_when_to_be_silent() -> None:
    assert nearest("MS", UNITS) == "ms"
    assert nearest("latancy", ["latency", "size"]) == "latency"
    assert nearest("zzz", ["latency"]) == ""
