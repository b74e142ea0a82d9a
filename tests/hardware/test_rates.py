"""Rates interpolate what was measured and keep its order."""

import pytest
from hardware_examples import MIB, kernel, make_target
from hypothesis import given
from hypothesis import strategies as st

from headway.core.target import KernelPoint, KernelRate
from headway.hardware.rates import Rates, interpolate

TARGET = make_target(kernel("int4", 4.5), kernel("int4", 4.5, threads=2, seconds_per_bit=5e-13), kernel("int8", 8.5))
RATES = Rates(TARGET, 1)

sizes = st.floats(1e3, 1e9)
row_counts = st.floats(1, 1e4)


def int4(weights, rows, working_set, rates=RATES):
    return rates.product_s("int4", weights * 4.5 / 8, weights, rows, working_set)


def test_a_measured_point_is_returned():
    assert int4(1e6, 1, 4 * MIB) == pytest.approx(1e6 * 4.5e-12)
    assert int4(1e6, 1, 128 * MIB) == pytest.approx(3e6 * 4.5e-12)
    assert int4(1e6, 128, 4 * MIB) == pytest.approx(1e6 * 2.56e-10)


def test_the_warm_figure_holds_for_half_of_the_last_cache():
    assert int4(1e6, 1, 16 * MIB) == pytest.approx(int4(1e6, 1, 1 * MIB))
    assert int4(1e6, 1, 60 * MIB) > int4(1e6, 1, 16 * MIB)


def test_more_rows_than_measured_cost_in_proportion():
    assert int4(1e6, 512, MIB) == pytest.approx(4 * int4(1e6, 128, MIB))


@given(sizes, sizes, row_counts, row_counts, sizes, sizes)
def test_more_weights_rows_or_bytes_between_never_cost_less(w0, w1, r0, r1, s0, s1):
    (w0, w1), (r0, r1), (s0, s1) = sorted((w0, w1)), sorted((r0, r1)), sorted((s0, s1))
    assert int4(w0, r0, s0) <= int4(w1, r1, s1) * (1 + 1e-9)


@given(sizes, sizes, row_counts, sizes)
def test_products_of_parts_add_up_to_the_whole(one, other, rows, working_set):
    whole = int4(one + other, rows, working_set)
    assert int4(one, rows, working_set) + int4(other, rows, working_set) == pytest.approx(whole)


@given(st.floats(1, 64), st.floats(1, 64), row_counts, sizes)
def test_one_variant_stored_in_more_bytes_never_costs_less(b0, b1, rows, working_set):
    rates = Rates(make_target(kernel("int8", 8.5)), 1)
    low, high = (rates.product_s("int8", 1e6 * bits / 8, 1e6, rows, working_set) for bits in sorted((b0, b1)))
    assert low <= high * (1.0 + 0.04)  # within SAME_BITS two sizes are one variant


def test_between_two_variants_lies_between_their_costs():
    rates = Rates(make_target(kernel("planes", 2.5), kernel("planes", 4.5)), 1)

    def cost(bits):
        return rates.product_s("planes", 1e6 * bits / 8, 1e6, 1, MIB)

    assert cost(3.5) == pytest.approx((cost(2.5) + cost(4.5)) / 2)


def test_fewer_bits_save_reading_but_no_arithmetic():
    rates = Rates(make_target(kernel("int8", 8.5)), 1)

    def cost(bits, rows):
        return rates.product_s("int8", 1e6 * bits / 8, 1e6, rows, MIB)

    assert cost(4.25, 1) == pytest.approx(cost(8.5, 1) / 2)
    assert cost(4.25, 128) > 0.98 * cost(8.5, 128)


def test_the_nearest_thread_count_and_the_asked_isa_are_used():
    assert int4(1e6, 1, MIB, Rates(TARGET, 2)) == pytest.approx(int4(1e6, 1, MIB) / 2)
    assert int4(1e6, 1, MIB, Rates(TARGET, 8)) == int4(1e6, 1, MIB, Rates(TARGET, 2))
    assert Rates(TARGET, 1, "avx2").variants("int4")
    assert not Rates(TARGET, 1, "avx512").variants("int4")


def test_an_unknown_form_gets_the_roofline_and_is_named():
    rates = Rates(TARGET, 1)
    assert rates.product_s("sparse", 3e6, 1e6, 1, 1e9) == pytest.approx(3e6 / 3e10)
    assert rates.product_s("sparse", 3e6, 1e6, 1000, 1e9) == pytest.approx(2e9 / 1e11)
    assert rates.guessed == {"sparse"}
    assert rates.call_s("sparse") == TARGET.crossing_s
    assert rates.call_s("int4") == 1e-6


def test_nothing_costs_nothing():
    assert RATES.product_s("int4", 0, 0, 1, 1) == RATES.product_s("int4", 8, 8, 0, 1) == 0


@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.floats(1e-12, 1)), min_size=1, max_size=5, unique_by=lambda p: p[0]),
    st.floats(0.1, 1e7),
)
def test_interpolation_stays_within_its_points(points, x):
    points = sorted(points)
    values = [y for _, y in points]
    assert min(values) * (1 - 1e-9) <= interpolate(points, x) <= max(values) * (1 + 1e-9)
    spread = {round(x, 3): (x, y) for x, y in points}
    for known, value in spread.values():
        if len(spread) == len(points):
            assert interpolate(points, known) == pytest.approx(value)


def test_points_that_only_rounding_parts_do_not_divide_by_zero():
    assert interpolate([(999999.9999999999, 1.0), (1000000.0, 2.0)], 1000000.0) == 2.0


def test_a_noisy_measurement_does_not_make_more_rows_cheaper():
    noisy = KernelRate("int4", 4, "avx2", 1, 0.0, (KernelPoint(1, MIB, 2e-12), KernelPoint(8, MIB, 1e-12)))
    rates = Rates(make_target(noisy), 1)
    assert rates.product_s("int4", 500, 1000, 8, MIB) == pytest.approx(1000 * 2e-12)
