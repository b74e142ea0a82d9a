"""Log-probabilities and divergences of logits, against float64, at every level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from headway.kernels.cpu import _cpu, at_level, levels


@pytest.mark.parametrize("level", levels())
@given(rows=st.integers(1, 5), vocab=st.integers(1, 3000), spread=st.floats(0.01, 40), seed=st.integers(0, 99))
def test_against_float64(level: str, rows: int, vocab: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours = rng.normal(0, spread, (rows, vocab)).astype(np.float32)
    theirs = (ours + rng.normal(0, 0.1 * spread, ours.shape)).astype(np.float32)
    targets = rng.integers(0, vocab, rows)
    p, q = (log_softmax(x.astype(np.float64), axis=1) for x in (ours, theirs))
    with at_level(level):
        alone = _cpu.log_softmax_at(ours, targets)
        mine, other, kl, agree = _cpu.compare_logits(ours, theirs, targets)
    every = np.arange(rows)
    assert mine == pytest.approx(p[every, targets], abs=1e-5)
    assert other == pytest.approx(q[every, targets], abs=1e-5)
    assert np.array_equal(alone, mine)
    assert kl == pytest.approx((np.exp(p) * (p - q)).sum(1), abs=1e-5 * max(1, spread))
    assert np.array_equal(agree, ours.argmax(1) == theirs.argmax(1))


def test_every_level_and_thread_count_gives_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0, 4, (2, 7, 4099)).astype(np.float32)
    targets = rng.integers(0, 4099, 7)
    found = []
    for level in levels():
        with at_level(level):
            found += [np.stack(_cpu.compare_logits(ours, theirs, targets, threads)) for threads in (1, 2)]
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_a_row_that_is_no_number_stays_none_and_agrees_with_nothing() -> None:
    logits = np.zeros((2, 40), np.float32)
    logits[1, 7] = np.nan
    mine, other, kl, agree = _cpu.compare_logits(logits, logits, np.array([0, 0]))
    assert np.isfinite(mine[0]) and kl[0] == 0 and agree[0]
    assert np.isnan([mine[1], other[1], kl[1]]).all() and not agree[1]


def test_what_does_not_fit_is_refused() -> None:
    logits = np.zeros((2, 5), np.float32)
    for targets in ([0], [0, 5], [-1, 0]):
        with pytest.raises(ValueError):
            _cpu.log_softmax_at(logits, np.array(targets))
