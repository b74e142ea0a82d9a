"""Times by share: monotone, whole at 1, refound by a fit, and blind to a neighbour only when contention is off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load
from headway.hardware.lane_time import LaneTime, Sample, Speed, error, fit_lanes, predict

COST = IterationTime((0, 8, 64, 4096), (0.01, 0.01, 0.02, 1.0), 1e-7, 1e-6, 1e-5, 1e-5)
TRUE = LaneTime(COST, Speed(0.8, 0.3), Speed(0.4, 0.1), Speed(1.0, 0.0), attention_demand=0.6)
PROMPT = Load(1024, 1024 * 3000.0, 0, 0, 1, 1)
ANSWERS = Load(16, 0.0, 16, 16 * 500, 16, 16)
shares = st.floats(0.05, 0.95)


@given(low=shares, high=shares)
def test_a_larger_share_is_never_slower(low: float, high: float) -> None:
    low, high = sorted((low, high))
    for load in (PROMPT, ANSWERS):
        assert TRUE.alone(load, 1.0) <= TRUE.alone(load, high) <= TRUE.alone(load, low)


def test_the_whole_machine_takes_the_measured_time() -> None:
    for load in (PROMPT, ANSWERS):
        assert TRUE.alone(load, 1.0) == pytest.approx(COST(load))


@given(share=shares)
def test_a_neighbour_never_helps(share: float) -> None:
    prefill, decode = TRUE.both(PROMPT, ANSWERS, share)
    assert prefill >= TRUE.alone(PROMPT, share) * (1 - 1e-9)
    assert decode >= TRUE.alone(ANSWERS, 1 - share) * (1 - 1e-9)


def test_decodes_suffer_while_a_prompt_is_in_attention() -> None:
    short = Load(1024, 1024 * 10.0, 0, 0, 1, 1)
    long = Load(1024, 1024 * 20000.0, 0, 0, 1, 1)
    slow = [TRUE.both(load, ANSWERS, 0.5)[1] for load in (short, long)]
    assert slow[0] < 1.05 * TRUE.alone(ANSWERS, 0.5) and slow[1] > 1.2 * slow[0]
    off = replace(TRUE, attention_demand=0.0)
    assert off.both(long, ANSWERS, 0.5)[1] == off.alone(ANSWERS, 0.5)


def test_a_fit_predicts_what_it_has_not_seen() -> None:
    random = np.random.default_rng(0)

    def samples(count: int) -> list[Sample]:
        made = []
        for _ in range(count):
            n, m = int(random.integers(16, 2048)), int(random.integers(1, 64))
            prompt = Load(n, n * float(random.integers(10, 8000)), 0, 0, 1, 1)
            answers = Load(m, 0.0, m, m * int(random.integers(10, 2000)), m, m)
            share = float(random.choice([0.25, 0.5, 0.75]))
            for sample in (
                Sample(prompt, share, 1.0, True), Sample(answers, share, 1.0, False),
                Sample(prompt, share, 1.0, True, answers), Sample(answers, 1.0 - share, 1.0, False, prompt),
            ):  # fmt: skip
                made.append(sample._replace(seconds=predict(TRUE, sample)))
        return made

    fitted = fit_lanes(COST, samples(12))
    assert error(fitted, samples(12)) < 0.03


def test_a_fit_without_parts_of_the_machine_is_refused() -> None:
    with pytest.raises(BadInput, match="part of the machine"):
        fit_lanes(COST, [Sample(PROMPT, 1.0, 0.1, True)])


def test_speeds_outside_their_bounds_are_refused() -> None:
    with pytest.raises(BadInput, match="knee"):
        Speed(0.0)
