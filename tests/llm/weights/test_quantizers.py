"""Quantisers: the card's figures for Gaussian weights, brute force where it is possible, and what never may happen."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from headway.core.errors import BadInput
from headway.kernels import cpu
from headway.llm.weights.grouped import expand
from headway.llm.weights.quantizers import AffineCodes, GridKind, fit, rtn
from headway.llm.weights.quantizers_bcq import bcq
from headway.llm.weights.quantizers_gptq import damped, factor, gptq


def gaussian(rows: int = 512, columns: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def hessian(columns: int, seed: int = 1, samples: int = 2048) -> np.ndarray:
    """A second moment with correlated columns of very different size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(columns, columns)) * rng.lognormal(0, 1.0, columns)
    x = rng.normal(size=(samples, columns)) @ mix / columns**0.5
    return (x.T @ x / samples).astype(np.float32)


def loss(w: np.ndarray, value: np.ndarray, h: np.ndarray) -> float:
    error = (w - value).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", error, h, error, optimize=True))


@pytest.mark.parametrize(
    ("bits", "rounded", "searched", "binary"),
    [(2, 0.209, 0.126, 0.111), (3, 0.0382, 0.0312, 0.0333), (4, 0.0083, 0.0076, 0.0100)],
)
def test_mean_error_on_gaussian_groups_of_64(bits: int, rounded: float, searched: float, binary: float) -> None:
    w = gaussian()

    def error(value: np.ndarray) -> float:
        return float(((w - value) ** 2).mean() / w.var())

    assert error(rtn(w, bits, 64, grid="zero").dequantize()) == pytest.approx(rounded, rel=0.05)
    assert error(rtn(w, bits, 64, grid="mse").dequantize()) == pytest.approx(searched, rel=0.05)
    assert error(bcq(w, bits, 64, offset=False).dequantize()) == pytest.approx(binary, rel=0.05)
    assert error(rtn(w, bits, 64, grid="weighted").dequantize()) <= searched
    assert error(bcq(w, bits, 64, offset=True).dequantize()) <= binary


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    columns=st.integers(1, 150),
    group=st.sampled_from([16, 32, 64]),
    bits=st.integers(1, 8),
    grid=st.sampled_from(["range", "zero", "mse", "weighted"]),
)
def test_every_code_is_the_nearest_of_its_grid(
    seed: int, rows: int, columns: int, group: int, bits: int, grid: GridKind
) -> None:
    w = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    made = rtn(w, bits, group, grid=grid)
    assert made.codes.max() < 1 << bits
    chosen = np.abs(made.dequantize() - w)
    for step in (-1, 1):
        other = np.clip(made.codes.astype(int) + step, 0, 2**bits - 1).astype(np.uint8)
        assert (chosen <= np.abs(AffineCodes(bits, other, made.grid).dequantize() - w) + 1e-5).all()


@pytest.mark.parametrize("grid", ["range", "zero", "mse", "weighted"])
def test_groups_of_equal_weights_and_of_zeros_come_back(grid: GridKind) -> None:
    w = np.zeros((3, 96), np.float32)
    w[1] = 0.75
    w[2, :40] = -2.5
    value = rtn(w, 3, 32, grid=grid).dequantize()
    assert np.abs(value - w).max() <= (2.5 / 7 if grid in ("zero", "mse") else 1e-3)
    assert (value[0] == 0).all()


def test_tiny_weights_keep_a_float32_grid() -> None:
    w = gaussian(8, 64) * np.float32(1e-7)
    made = rtn(w, 4, 32)
    assert made.scale.dtype == np.float32
    assert np.abs(made.dequantize() - w).max() < 0.2 * np.abs(w).max()


def test_the_clip_search_follows_the_important_columns() -> None:
    w = gaussian(64, 64)
    importance = np.full(64, 1e-3, np.float32)
    importance[:8] = 1.0
    plain, guided = (rtn(w, 2, 64, grid="weighted", importance=i).dequantize() for i in (None, importance))
    assert ((w - guided) ** 2 * importance).sum() < 0.7 * ((w - plain) ** 2 * importance).sum()


def reference_gptq(w: np.ndarray, h: np.ndarray, made: AffineCodes, order: np.ndarray) -> np.ndarray:
    """GPTQ as its paper writes it: one column after the other, the inverse reduced by elimination."""
    top = 2**made.bits - 1
    scale = expand(made.scale, w.shape[1], made.group_size).astype(np.float64)
    low = expand(made.minimum, w.shape[1], made.group_size).astype(np.float64)
    inverse = np.linalg.inv(h.astype(np.float64))
    left, codes = w.astype(np.float64), np.zeros(w.shape, np.uint8)
    for c in order:
        q = np.clip(np.rint((left[:, c] - low[:, c]) / scale[:, c]), 0, top)
        codes[:, c] = q
        lost = (left[:, c] - (q * scale[:, c] + low[:, c])) / inverse[c, c]
        left -= np.outer(lost, inverse[c])
        inverse -= np.outer(inverse[:, c], inverse[c]) / inverse[c, c]
    return codes


@pytest.mark.parametrize(("columns", "group", "act_order"), [(80, 32, True), (64, 64, False), (50, 16, True)])
def test_the_pass_equals_gptq_by_elimination(columns: int, group: int, act_order: bool) -> None:
    w, h = gaussian(37, columns, 3), hessian(columns)
    made = gptq(w, h, 3, group, rounds=0, act_order=act_order)
    expected = reference_gptq(w, damped(h, 0.01), made, factor(h, 0.01, act_order).order)
    assert (made.codes == expected).mean() > 0.999


@pytest.mark.parametrize("columns", [1, 16, 31, 32, 48, 65, 200])
def test_the_factor_gives_h_back_in_its_order(columns: int) -> None:
    h = hessian(columns)
    for act_order in (True, False):
        made = factor(h, 0.01, act_order)
        permuted = damped(h, 0.01)[np.ix_(made.order, made.order)].astype(np.float64)
        v = made.v.astype(np.float64)
        assert (np.tril(v, -1) == 0).all()
        assert (np.diagonal(v) == 1).all()
        inverse = np.linalg.inv(v)
        pivots = inverse @ permuted @ inverse.T
        size = np.sqrt(np.outer(np.diagonal(pivots), np.diagonal(pivots)))
        np.testing.assert_allclose(pivots / size, np.eye(columns), atol=2e-3)
    assert (np.diff(np.diagonal(h)[factor(h, 0.01, True).order]) <= 0).all()


def test_a_singular_h_is_factored_by_its_damping() -> None:
    h = hessian(96, samples=20)
    w = gaussian(16, 96)
    value = gptq(w, h, 4, 32).dequantize()
    assert np.isfinite(value).all()
    assert loss(w, value, h) < 0.5 * loss(w, rtn(w, 4, 32).dequantize(), h)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(2, 4), group=st.sampled_from([16, 32, 64]))
def test_each_round_lowers_the_loss_under_h(seed: int, bits: int, group: int) -> None:
    w, h = gaussian(20, 96, seed), hessian(96, seed)
    under = damped(h, 0.01)
    losses = [loss(w, gptq(w, h, bits, group, rounds=n, floats="f32").dequantize(), under) for n in range(4)]
    assert losses[1] < losses[0]
    assert losses[2] <= losses[1] * (1 + 1e-4)
    assert losses[3] <= losses[2] * (1 + 1e-4)
    assert losses[0] < loss(w, rtn(w, bits, group, grid="weighted", importance=np.diagonal(h)).dequantize(), under)


def test_refined_codes_cannot_be_bettered_by_changing_one() -> None:
    w, h = gaussian(4, 32, 5), hessian(32)
    made = gptq(w, h, 2, 16, rounds=40, floats="f32")
    under = damped(h, 0.01)
    best = loss(w, made.dequantize(), under)
    for row, column, step in itertools.product(range(4), range(32), (-1, 1)):
        codes = made.codes.copy()
        codes[row, column] = np.clip(int(codes[row, column]) + step, 0, 3)
        assert loss(w, AffineCodes(2, codes, made.grid).dequantize(), under) >= best * (1 - 1e-5)


@pytest.mark.parametrize("level", [level for level in cpu.levels() if level != cpu.isa()])
def test_every_instruction_set_makes_the_same_bits(level: str) -> None:
    w, h = gaussian(37, 70, 8), hessian(70)
    made = gptq(w, h, 3, 32), bcq(w, 2, 32, hessian=h), fit(w, 4, 32, grid="weighted")
    with cpu.at_level(level):
        again = gptq(w, h, 3, 32), bcq(w, 2, 32, hessian=h), fit(w, 4, 32, grid="weighted")
    np.testing.assert_array_equal(made[0].codes, again[0].codes)
    np.testing.assert_array_equal(made[0].scale, again[0].scale)
    np.testing.assert_array_equal(made[1].codes, again[1].codes)
    np.testing.assert_array_equal(made[2].minimum, again[2].minimum)


def test_threads_do_not_change_the_bits() -> None:
    w, h = gaussian(150, 96, 2), hessian(96)
    one, two = gptq(w, h, 3, 32, threads=1), gptq(w, h, 3, 32, threads=2)
    np.testing.assert_array_equal(one.codes, two.codes)
    np.testing.assert_array_equal(one.scale, two.scale)


def test_columns_without_signal_are_still_rounded() -> None:
    w, h = gaussian(8, 64), hessian(64)
    h[10:20] = 0
    h[:, 10:20] = 0
    value = gptq(w, h, 4, 32).dequantize()
    assert np.abs(value - w)[:, 10:20].max() < 0.5 * np.abs(w).max()


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_binary_codes_are_the_best_signs_for_their_values(bits: int) -> None:
    w = gaussian(5, 40, 4)
    made = bcq(w, bits, 16, floats="f32")
    alphas, offset = made.alphas, made.offset
    assert (np.diff(alphas, axis=0) <= 0).all()
    every = np.stack(
        [
            sum(sign * expand(alpha, 40, 16) for sign, alpha in zip(signs, alphas, strict=True))
            + expand(offset, 40, 16)
            for signs in itertools.product([-1, 1], repeat=bits)
        ]
    )
    np.testing.assert_allclose(np.abs(made.dequantize() - w), np.abs(every - w).min(0), atol=1e-6)


def test_one_plane_is_the_mean_and_the_mean_size() -> None:
    w = gaussian(3, 32)
    made = bcq(w, 1, 32, floats="f32")
    np.testing.assert_allclose(made.offset[:, 0], w.mean(1), atol=1e-6)
    np.testing.assert_allclose(made.alphas[0, :, 0], np.abs(w - w.mean(1, keepdims=True)).mean(1), rtol=1e-5)


def test_error_feedback_helps_binary_codes_too() -> None:
    w, h = gaussian(40, 128, 9), hessian(128)
    plain = bcq(w, 2, 32, importance=np.diagonal(h)).dequantize()
    assert loss(w, bcq(w, 2, 32, hessian=h).dequantize(), h) < 0.8 * loss(w, plain, h)


def test_bad_input_is_refused_with_the_reason() -> None:
    w, h = gaussian(4, 32), hessian(32)
    broken = w.copy()
    broken[2, 7] = np.nan
    for make in (lambda v: rtn(v, 3, 32), lambda v: gptq(v, h, 3, 32), lambda v: bcq(v, 3, 32)):
        with pytest.raises(BadInput, match=r"not finite at \(2, 7\)"):
            make(broken)
    with pytest.raises(BadInput, match="bits=9"):
        rtn(w, 9, 32)
    with pytest.raises(BadInput, match="bits=5 is over 4"):
        bcq(w, 5, 32)
    with pytest.raises(BadInput, match="no matrix"):
        rtn(np.zeros((0, 32), np.float32), 3, 32)
    with pytest.raises(BadInput, match="does not fit 32 inputs"):
        gptq(w, h[:5], 3, 32)
