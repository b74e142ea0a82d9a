"""`BipolarWeight`, the Hadamard turn and the bipolar quantiser: exact round trips, plain definitions, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from headway.core.errors import BadInput
from headway.llm.weights.base import load_weight
from headway.llm.weights.bipolar import BipolarWeight
from headway.llm.weights.grouped import group_count
from headway.llm.weights.hadamard import turned, turned_moment, turned_weight
from headway.llm.weights.quantizers import rtn
from headway.llm.weights.quantizers_bipolar import bipolar


def weight(bits=3, rows=6, columns=100, group=32, dtype=np.float16, offset=False, **more) -> BipolarWeight:
    generator = np.random.default_rng([bits, rows, columns])
    codes = generator.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    groups = (rows, group_count(columns, group or columns))
    scale = generator.uniform(0.01, 0.1, groups).astype(dtype)
    middle = generator.normal(size=groups).astype(dtype) if offset else None
    return BipolarWeight.from_codes(codes, scale, middle, bits=bits, group_size=group, **more)


@given(
    bits=st.integers(1, 8),
    columns=st.integers(1, 200),
    group=st.sampled_from([0, 32, 64]),
    offset=st.booleans(),
    dtype=st.sampled_from([np.float16, np.float32]),
    rotate=st.sampled_from([0, 16, 64]),
)
def test_a_stored_weight_is_rebuilt_bit_for_bit(bits, columns, group, offset, dtype, rotate):
    w = weight(bits, 5, columns, group, dtype, offset, act_bits=4, act_group=32, rotate=rotate, clip=0)
    again = load_weight("bipolar", load(save(dict(w.tensors()))), w.meta())
    assert isinstance(again, BipolarWeight)
    assert again.meta() == w.meta()
    assert again.nbytes == w.nbytes
    assert np.array_equal(again.dequantize(), w.dequantize())
    assert np.array_equal(again.rows(np.array([4, 0])), w.dequantize()[[4, 0]])


def test_values_are_odd_multiples_of_the_scale():
    for bits in range(1, 9):
        w = weight(bits)
        levels = w.levels()
        assert (np.abs(levels) % 2 == 1).all()
        assert np.abs(levels).max() <= 2**bits - 1
        scale = np.repeat(w.scale.astype(np.float64), 32, axis=1)[:, :100]
        assert np.array_equal(w.dequantize(), (levels * scale).astype(np.float32))


def test_it_stores_bits_and_a_half_per_group():
    for bits in range(1, 9):
        w = weight(bits, 64, 256, 128)
        assert w.bits_per_weight == bits + 16 / 128
        assert w.native().nbytes == w.nbytes


def test_affine_codes_are_converted_without_loss():
    generator = np.random.default_rng(0)
    for bits in range(1, 9):
        w = generator.standard_normal((16, 256), dtype=np.float32)
        signed = rtn(w, bits, 64, grid="zero")
        made = BipolarWeight.from_affine(signed.codes, signed.scale, signed.minimum, bits=bits, group_size=64)
        exact = signed.codes * np.repeat(signed.scale.astype(np.float64), 64, axis=1)
        exact += np.repeat(signed.minimum.astype(np.float64), 64, axis=1)
        assert np.array_equal(made.dequantize(), exact.astype(np.float32))


@given(size=st.sampled_from([2, 4, 16, 32, 64, 128]), columns=st.integers(1, 200), seed=st.integers(0, 99))
def test_turning_both_sides_keeps_products(size, columns, seed):
    generator = np.random.default_rng(seed)
    w, x = generator.standard_normal((3, columns)), generator.standard_normal((2, columns))
    w, x = w.astype(np.float32), x.astype(np.float32)
    there = turned(x, size).astype(np.float64) @ turned_weight(w, size).astype(np.float64).T
    assert np.allclose(there, x.astype(np.float64) @ w.T, atol=1e-5)
    assert np.allclose(turned(turned_weight(w, size), size), w, atol=1e-5)
    h = x.T @ x
    assert np.allclose(turned_moment(h, size), turned(x, size).T @ turned(x, size), atol=1e-4)


def test_a_whole_block_is_multiplied_by_the_hadamard_matrix():
    matrix = np.ones((1, 1))
    while len(matrix) < 64:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    assert np.allclose(turned(x, 64), x @ matrix / 8, atol=1e-5)
    assert np.array_equal(turned(x, 0), x)


def test_one_bit_is_the_sign_times_the_mean():
    w = np.random.default_rng(2).standard_normal((4, 128)).astype(np.float32)
    found = bipolar(w, 1, 64)
    assert np.array_equal(found.codes, w > 0)
    assert np.allclose(found.scale, np.abs(w).reshape(4, 2, 64).mean(-1), rtol=1e-3)


def test_the_search_is_no_worse_than_the_largest_weight_and_near_the_best_scale():
    w = np.random.default_rng(3).standard_t(4, size=(16, 128)).astype(np.float32)
    for bits in (2, 3, 4, 8):
        searched, largest = (np.square(bipolar(w, bits, 64, clip=c).dequantize() - w).sum() for c in (True, False))
        assert searched <= largest * 1.0001
        top = 2**bits - 1
        best = 0.0
        for row in w.reshape(-1, 64):
            steps = np.abs(row).max() / top * np.linspace(0.2, 1.05, 300)[:, None]
            levels = np.clip(2 * np.rint((row / steps + top) / 2) - top, -top, top)
            best += np.square(steps * levels - row).sum(1).min()
        assert searched <= (1.06 if bits < 8 else 1.15) * best


def test_feedback_and_refitting_lower_the_loss_under_h():
    generator = np.random.default_rng(4)
    x = generator.standard_normal((400, 96)) @ generator.standard_normal((96, 96))
    h = (x.T @ x / 400).astype(np.float32)
    w = generator.standard_normal((20, 96)).astype(np.float32)

    def loss(value: np.ndarray) -> float:
        return float(np.einsum("oi,ij,oj->", w - value, h, w - value))

    rounded, swept, refined = bipolar(w, 3, 32), bipolar(w, 3, 32, hessian=h, rounds=0), bipolar(w, 3, 32, hessian=h)
    assert loss(refined.dequantize()) < 0.95 * loss(swept.dequantize()) < 0.6 * loss(rounded.dequantize())


def test_refined_scales_are_those_of_least_loss_for_their_codes():
    generator = np.random.default_rng(5)
    x = generator.standard_normal((300, 64)) @ generator.standard_normal((64, 64))
    h = (x.T @ x / 300).astype(np.float32)
    w = generator.standard_normal((5, 64)).astype(np.float32)
    found = bipolar(w, 4, 32, hessian=h, damping=1e-4)
    for row in range(5):
        basis = np.zeros((2, 64))
        for k in range(2):
            basis[k, 32 * k : 32 * k + 32] = 2.0 * found.codes[row, 32 * k : 32 * k + 32] - 15
        best = np.linalg.solve(basis @ h @ basis.T, basis @ h @ w[row])
        assert np.allclose(found.scale[row], best, rtol=5e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_bits": 9}, "act_bits=9"),
        ({"group_size": 48}, "group_size=48"),
        ({"act_group": 20}, "act_group=20"),
        ({"rotate": 48}, "rotate=48"),
        ({"clip": 2}, "clip=2"),
        ({"group_size": 64}, "one number per row and group"),
        ({"in_features": 90}, "do not hold 90"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, words):
    w = weight()
    with pytest.raises(BadInput, match=words):
        BipolarWeight(w.planes, w.scale, **{**w.meta(), **change})


def test_broken_tensors_are_refused():
    w = weight()
    bad = w.scale.copy()
    bad[2, 1] = np.nan
    with pytest.raises(BadInput, match=r"scale is not finite at \(2, 1\)"):
        BipolarWeight(w.planes, bad, **w.meta())
    with pytest.raises(BadInput, match="code 7 does not fit 2 bits"):
        codes = np.full((4, 32), 7, np.uint8)
        BipolarWeight.from_codes(codes, np.ones((4, 1), np.float16), bits=2, group_size=32)
    with pytest.raises(BadInput, match="missing"):
        load_weight("bipolar", {"planes": w.planes}, w.meta())
    with pytest.raises(BadInput, match="H of shape"):
        bipolar(np.ones((2, 32), np.float32), 2, 32, hessian=np.eye(3, dtype=np.float32))
