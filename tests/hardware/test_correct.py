"""Measured runs correct predictions: by a common factor at first, part by part when runs tell them apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.hardware.correct import NONE, RECENT, Run, learn

PARTS = {"matrices:int4": 3e-3, "attention": 5e-4, "fixed": 2e-4}


def test_without_runs_a_prediction_stays():
    assert learn([])(PARTS) == NONE(PARTS) == pytest.approx(sum(PARTS.values()))
    assert learn([Run(PARTS, 0.0), Run({}, 1.0)]) == NONE


@given(st.floats(0.05, 50))
def test_one_run_scales_everything_alike(factor):
    correction = learn([Run(PARTS, factor * sum(PARTS.values()))])
    assert correction(PARTS) == pytest.approx(factor * sum(PARTS.values()))
    assert correction({"matrices:int8": 1e-3}) == pytest.approx(factor * 1e-3)


@given(st.lists(st.floats(0.5, 3), min_size=3, max_size=3))
def test_many_runs_find_the_factor_of_each_part(truth):
    factors = dict(zip(PARTS, truth, strict=True))
    runs = []
    for index in range(9):
        parts = {name: value * (1 + 3 * ((index + shift) % 3)) for shift, (name, value) in enumerate(PARTS.items())}
        runs.append(Run(parts, sum(parts[name] * factors[name] for name in parts)))
    correction = learn(runs)
    for run in runs:
        assert correction(run.parts) == pytest.approx(run.seconds, rel=0.05)


@given(st.lists(st.floats(1e-4, 1e-1), min_size=1, max_size=8))
def test_corrected_seconds_are_never_negative(seconds):
    runs = [Run({**PARTS, f"matrices:{i % 3}": 1e-3}, value) for i, value in enumerate(seconds)]
    correction = learn(runs)
    assert all(factor >= 0 for factor in correction.factors.values())
    assert correction(PARTS) >= 0


def test_old_runs_are_forgotten():
    total = sum(PARTS.values())
    runs = [Run(PARTS, 100 * total)] * 5 + [Run(PARTS, 2 * total)] * RECENT
    assert learn(runs)(PARTS) == pytest.approx(2 * total)


def test_one_disturbed_run_does_not_move_the_common_factor():
    total = sum(PARTS.values())
    runs = [Run(PARTS, total)] * 6 + [Run(PARTS, 10 * total)]
    assert learn(runs).common == pytest.approx(1.0)
