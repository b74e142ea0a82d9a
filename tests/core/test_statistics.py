"""Intervals against brute force, known laws and their promised coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headway.core import statistics
from headway.core.statistics import (
    Interval,
    bootstrap,
    mean_difference,
    median,
    median_ratio,
    noise_floor,
    perplexity_ratio,
    sign_correlation_time,
    verdict,
)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_the_median_bootstrap_is_the_one_every_resample_would_give(n: int) -> None:
    resamples = np.sort(list(itertools.product(range(n), repeat=n)), axis=1)
    middle = (resamples[:, (n - 1) // 2], resamples[:, n // 2])
    counted = sum(np.bincount(half, minlength=n) for half in middle) / 2 / len(resamples)
    np.testing.assert_allclose(statistics._median_masses(n), counted, atol=1e-12)


def test_the_interval_of_the_median_has_binomial_coverage() -> None:
    """40 pairs: the 95% interval ends between the order statistics whose exact coverage is 91.9% and 96.2%."""
    found = median(np.random.default_rng(0).permutation(40))
    assert 12 < found.low < 14 and found.low + found.high == pytest.approx(39)
    assert found.value == 19.5


@given(st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=60), st.floats(0.1, 10.0), st.integers(0, 2**32 - 1))
def test_ratio_intervals_contain_the_median_and_follow_scale_and_inversion(
    times: list[float], scale: float, seed: int
) -> None:
    baseline = np.array(times)
    candidate = baseline * np.exp(np.random.default_rng(seed).normal(0, 0.1, len(times)))
    found = median_ratio(candidate, baseline)
    assert found.low <= found.value * (1 + 1e-12) and found.value <= found.high * (1 + 1e-12)
    scaled = median_ratio(candidate * scale, baseline)
    assert [scaled.low, scaled.value, scaled.high] == pytest.approx(
        [found.low * scale, found.value * scale, found.high * scale]
    )
    inverse = median_ratio(baseline, candidate)
    assert [inverse.low, inverse.high] == pytest.approx([1 / found.high, 1 / found.low])


def test_constant_ratios_give_a_point_and_no_nan() -> None:
    found = median_ratio([1.03] * 20, [1.0] * 20)
    assert found.low == found.high == found.value == pytest.approx(1.03)
    assert verdict(found) == "slower"
    same = bootstrap(np.ones(10), lambda s: s.mean(-1))
    assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_too_few_pairs_say_nothing(n: int) -> None:
    found = median_ratio([2.0] * n, [1.0] * n)
    assert (found.low, found.high) == (0.0, math.inf)
    assert verdict(found) == "too few pairs"
    assert found.text().endswith(f"({n} {'pair' if n == 1 else 'pairs'}: too few to say)")
    assert noise_floor(found) == math.inf


def test_ninety_nine_percent_is_wider_and_needs_more_pairs() -> None:
    series = np.random.default_rng(0).normal(size=50)
    assert median(series, level=0.99).width > median(series).width
    assert statistics.fewest_pairs() == 6 and statistics.fewest_pairs(0.99) == 8


def test_serial_correlation_widens_the_interval() -> None:
    generator = np.random.default_rng(0)
    independent = generator.normal(size=200)
    walk = np.repeat(generator.normal(size=20), 10)
    assert sign_correlation_time(independent) < 2 < sign_correlation_time(walk)
    assert sign_correlation_time(np.ones(9)) == 1.0
    assert median(walk).width > 1.5 * median(np.random.default_rng(1).permutation(walk)).width
    two_pieces = median(np.repeat([0.0, 1.0], 50))
    assert two_pieces.low < 0 < 1 < two_pieces.high, "two pieces cannot bound a median"
    assert sign_correlation_time(2.5 + 1e-15 * np.arange(40)) == 1.0, "rounding is no correlation"


def test_verdicts_need_the_interval_and_the_floor() -> None:
    clear = Interval(1.03, 1.02, 1.04, 40)
    assert verdict(clear, 0.01) == "slower" and verdict(clear, 0.05) == "none"
    assert verdict(clear.map(lambda r: 1 / r), 0.01) == "faster"
    assert verdict(clear.map(lambda r: 1 / r), 0.05) == "none"
    assert verdict(Interval(1.03, 0.99, 1.07, 40), 0.0) == "none"
    assert noise_floor(Interval(1.0, 0.98, 1.01, 40)) == pytest.approx(1 / 0.98 - 1)


def test_intervals_print_and_exclude() -> None:
    found = Interval(0.757, 0.749, 0.766, 40)
    assert found.text() == "0.757 [0.749, 0.766]"
    assert found.excludes(1.0) and not found.excludes(0.75)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_bca_agrees_with_scipy(seed: int) -> None:
    sample = np.random.default_rng(seed).exponential(size=200)
    ours = bootstrap(sample, lambda s: s.mean(-1), seed=seed)
    theirs = stats.bootstrap((sample,), np.mean, n_resamples=2999, method="BCa", rng=seed).confidence_interval
    scale = sample.std() / math.sqrt(len(sample))
    assert abs(ours.low - theirs.low) < 0.25 * scale and abs(ours.high - theirs.high) < 0.25 * scale


def test_bootstrap_of_one_piece_is_unbounded_and_extremes_fall_back() -> None:
    assert bootstrap(np.array([2.0]), lambda s: s.mean(-1)).width == math.inf
    top = bootstrap(np.array([0.0] * 5 + [1.0]), lambda s: s.max(-1))
    assert (top.low, top.high) == (0.0, 1.0)
    assert statistics._bca_tails(0.5, np.linspace(0, 1, 100), np.array([0.0] * 50 + [-9.0]), 1e-9)[0] > 0


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_few_pieces_give_students_interval(n: int) -> None:
    sample = np.random.default_rng(n).normal(size=n)
    found = bootstrap(sample, lambda s: s.mean(-1))
    half = stats.t.ppf(0.975, n - 1) * sample.std(ddof=1) / math.sqrt(n)
    assert (found.value, found.n) == (pytest.approx(sample.mean()), n)
    assert (found.low, found.high) == (pytest.approx(found.value - half), pytest.approx(found.value + half))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=12), st.sampled_from([0.95, 0.99])
)
def test_every_number_of_pieces_gives_an_interval(values: list[float], level: float) -> None:
    sample = np.array(values)
    found = bootstrap(sample, lambda s: s.mean(-1), level=level, resamples=99)
    slack = 1e-9 * max(1.0, float(np.abs(sample).max()))
    assert found.low <= found.high
    if len(values) < 6:
        assert found.low <= found.value <= found.high
    assert (found.n, found.value) == (len(values), pytest.approx(sample.mean(), abs=slack))
    if sample.min() == sample.max() and len(values) > 1:
        assert found.width <= slack
    worse = perplexity_ratio(sample / 1e3, np.zeros(len(values)), level=level)
    assert 0 <= worse.low <= worse.high and not math.isnan(worse.value)


def test_mean_difference_is_exact_and_respects_windows() -> None:
    generator = np.random.default_rng(0)
    baseline = generator.normal(size=600)
    candidate = baseline + 0.25
    found = mean_difference(candidate, baseline, windows=[200, 300, 100])
    assert found.value == pytest.approx(0.25) and found.width < 1e-9
    with pytest.raises(ValueError, match="windows hold"):
        mean_difference(candidate, baseline, windows=[1, 2])
    with pytest.raises(ValueError, match="one dimension"):
        mean_difference(np.zeros((2, 2)), np.zeros((2, 2)))


def test_perplexity_ratio_is_the_ratio_of_perplexities() -> None:
    generator = np.random.default_rng(0)
    original = generator.normal(-3, 1, 2000)
    worse = original - generator.exponential(0.05, 2000)
    found = perplexity_ratio(worse, original, windows=[500] * 4)
    assert found.value == pytest.approx(math.exp(-worse.mean()) / math.exp(-original.mean()))
    assert 1 < found.low < found.value < found.high


def test_correlated_losses_get_longer_blocks_and_wider_intervals() -> None:
    generator = np.random.default_rng(0)
    white = generator.normal(size=4000)
    smooth = np.convolve(white, np.ones(20) / math.sqrt(20), mode="same")
    assert statistics.block_length([white]) < 20 < statistics.block_length([smooth])
    zeros = np.zeros(4000)
    assert mean_difference(smooth, zeros).width > 2 * mean_difference(white, zeros).width


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_perplexity_intervals_cover_the_truth(correlation: float) -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(150):
        noise = generator.standard_t(3, size=(4, 200)) * 0.3
        for step in range(1, 200):
            noise[:, step] += correlation * noise[:, step - 1]
        baseline = np.zeros(800)
        found = perplexity_ratio(baseline - 0.04 - noise.ravel(), baseline, windows=[200] * 4)
        covered += not found.excludes(math.exp(0.04))
    assert 0.90 <= covered / 150 <= 0.99
