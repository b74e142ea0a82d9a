"""Bipolar kernels: integers against int64 products, both ways of multiplying, every level, and the same bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights.bipolar import BipolarWeight, measured_count_rows, quantised_activations
from headway.llm.weights.grouped import group_count

COUNT, RECOVER = 1 << 30, 0
WIDTHS = list(itertools.product(range(1, 9), range(1, 9)))


def weight(
    bits: int, rows: int, columns: int, group: int = 0, *, offset: bool = False, dtype: Any = np.float16, **more: int
) -> BipolarWeight:
    generator = np.random.default_rng([bits, rows, columns, group])
    codes = generator.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    groups = (rows, group_count(columns, group or columns))
    scale = generator.uniform(0.01, 0.03, groups).astype(dtype)
    middle = generator.normal(0, 0.03, groups).astype(dtype) if offset else None
    return BipolarWeight.from_codes(codes, scale, middle, bits=bits, group_size=group, **more)


def inputs(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def wide(per_group: np.ndarray, group: int, columns: int) -> np.ndarray:
    """(rows, groups) -> (rows, columns), float64."""
    return np.repeat(per_group.astype(np.float64), group or columns, axis=1)[:, :columns]


def everyway(w: BipolarWeight) -> list[Any]:
    """The weight packed for every level of kernels, by counting and by recovering."""
    return [w.packed(limit, level) for level in _cpu.bipolar_levels() for limit in (COUNT, RECOVER)]


@pytest.mark.parametrize("columns", [1, 31, 64, 255, 576, 4097])
def test_integers_are_those_of_int64_for_every_pair_of_widths(columns):
    generator = np.random.default_rng(columns)
    for n, m in WIDTHS:
        rows, batch = int(generator.integers(1, 40)), int(generator.integers(1, 12))
        shape = {"act_bits": m, "act_group": int(generator.choice([0, 32, 64, 96]))}
        w = weight(
            n, rows, columns, int(generator.choice([0, 32, 64, 128])), rotate=int(generator.choice([0, 64])), **shape
        )
        x = inputs(batch, columns)
        levels, _ = quantised_activations(x, m, shape["act_group"], w.rotate, w.clip)
        expected = levels.astype(np.int64) @ w.levels().astype(np.int64).T
        for native in everyway(w):
            assert np.array_equal(_cpu.bipolar_integers(native, x), expected)


def test_the_largest_integers_do_not_overflow():
    columns = 40000
    for sign in (1, -1):
        x = np.full((1, columns), sign, np.float32)
        codes = np.full((16, columns), 255, np.uint8)
        w = BipolarWeight.from_codes(codes, np.ones((16, 1), np.float16), bits=8, group_size=0, act_bits=8, act_group=0)
        for native in everyway(w):
            assert (_cpu.bipolar_integers(native, x) == sign * columns * 255 * 255).all()


def test_every_way_level_thread_count_and_batch_gives_the_same_bits():
    cases = itertools.product(((1, 1), (2, 4), (4, 8), (8, 8)), ((0, 0), (64, 32), (128, 64)), (False, True), (0, 64))
    for (n, m), (group, act_group), offset, rotate in cases:
        w = weight(n, 33, 200, group, offset=offset, act_bits=m, act_group=act_group, rotate=rotate)
        x = inputs(13, 200)
        y = w.matmul(x)
        assert all(np.array_equal(w.matmul(x[i : i + 1])[0], y[i]) for i in range(3))
        assert np.array_equal(w.native().matmul(x, threads=1), y)
        for native in everyway(w):
            for batch in (1, 2, 5, 13):
                assert np.array_equal(native.matmul(x[:batch]), y[:batch])
            assert np.array_equal(native.dequantize(), w.dequantize())


def test_activations_rounded_by_several_threads_are_the_same():
    for rotate, act_group in itertools.product((0, 64, 256), (0, 64, 96)):
        w = weight(3, 40, 1500, 96, act_bits=4, rotate=rotate, act_group=act_group)
        x = inputs(16, 1500)
        assert np.array_equal(w.native().matmul(x, threads=2), w.native().matmul(x, threads=1))


@given(
    n=st.integers(1, 8),
    m=st.integers(1, 8),
    rows=st.integers(1, 35),
    columns=st.integers(1, 300),
    group=st.sampled_from([0, 32, 96, 128]),
    act_group=st.sampled_from([0, 32, 64]),
    rotate=st.sampled_from([0, 2, 16, 64, 256]),
    offset=st.booleans(),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_the_product_is_that_of_rounded_activations(n, m, rows, columns, group, act_group, rotate, offset, dtype):
    w = weight(n, rows, columns, group, offset=offset, dtype=dtype, act_bits=m, act_group=act_group, rotate=rotate)
    x = inputs(2, columns)
    levels, scales = quantised_activations(x, m, act_group, rotate, 1)
    rounded = levels * wide(scales, act_group, columns)
    turned = w.levels() * wide(w.scale, group, columns)
    size = np.abs(rounded) @ np.abs(turned).T
    if w.offset is not None:
        offsets = wide(w.offset, group, columns)
        turned = turned + offsets
        size = size + np.abs(rounded) @ np.abs(offsets).T
    assert (np.abs(w.matmul(x) - rounded @ turned.T) <= 2e-6 * size).all()
    ids = np.array([rows - 1, 0], np.int32)
    assert np.array_equal(w.native().gather(ids), w.dequantize()[ids])


def test_turning_leaves_the_product_of_the_exact_value_alone():
    for rotate, columns in itertools.product((2, 16, 32, 64, 128, 256), (64, 100, 331)):
        w = weight(8, 20, columns, 64, act_bits=8, rotate=rotate)
        x = inputs(3, columns)
        exact = x.astype(np.float64) @ w.dequantize().astype(np.float64).T
        assert np.linalg.norm(w.matmul(x) - exact) <= 1e-2 * np.linalg.norm(exact)


def test_eight_bits_are_close_and_fewer_are_worse():
    x = inputs(4, 576)
    errors = []
    for m in (8, 6, 4, 2):
        w = weight(4, 40, 576, 128, act_bits=m)
        exact = x.astype(np.float64) @ w.dequantize().astype(np.float64).T
        errors.append(np.linalg.norm(w.matmul(x) - exact) / np.linalg.norm(exact))
    assert errors[0] <= 8e-3
    assert errors == sorted(errors)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_activations_make_their_row_nan_and_no_other(bad):
    for (n, m), rotate, act_group in itertools.product(((1, 1), (3, 4), (8, 8)), (0, 64), (0, 64)):
        w = weight(n, 33, 200, 128, offset=n == 3, act_bits=m, rotate=rotate, act_group=act_group)
        x = inputs(7, 200)
        clean = w.matmul(x)
        x[1, 57] = bad
        for native in everyway(w):
            y = native.matmul(x)
            assert np.isnan(y[1]).all()
            assert np.array_equal(np.delete(y, 1, 0), np.delete(clean, 1, 0))


def test_rows_of_zeros_give_exactly_zero():
    for (n, m), offset in itertools.product(((1, 1), (4, 4), (8, 8)), (False, True)):
        w = weight(n, 20, 100, 32, offset=offset, act_bits=m, rotate=64)
        x = inputs(3, 100)
        x[1] = 0
        x[2] = 1e-38
        for native in everyway(w):
            assert not native.matmul(x)[1:].any()


def test_large_activations_stay_finite():
    w = weight(4, 20, 128, 64, rotate=64)
    assert np.isfinite(w.matmul(inputs(2, 128) * np.float32(1e35))).all()


def test_counts_say_which_way_the_tiles_went():
    w, x = weight(2, 40, 96, 32, act_bits=2), inputs(3, 96)
    before = _cpu.bipolar_counts()
    w.packed(3).matmul(x)
    w.packed(2).matmul(x)
    after = _cpu.bipolar_counts()
    assert {key: after[key] - before[key] for key in after} == {"counted": 3, "recovered": 3}


def test_the_way_is_measured_once_for_each_level():
    for n, m in ((1, 1), (8, 8)):
        found = measured_count_rows(n, m, 128, 64, _cpu.bipolar_levels()[-1])
        assert found in (0, 1, 2, 4, 8, 16, COUNT)
        assert measured_count_rows(n, m, 128, 64, _cpu.bipolar_levels()[-1]) == found


def test_a_lower_level_uses_lower_kernels():
    for level in cpu.levels():
        with cpu.at_level(level):
            assert _cpu.bipolar_level(weight(2, 16, 64).packed(0)).startswith(level)


def test_the_roof_is_a_rate_of_every_level():
    for level in _cpu.bipolar_levels():
        assert _cpu.bipolar_roof(level, 2) > 0


def test_packing_refuses_what_does_not_fit():
    w = weight(3, 16, 64, 32)
    scale = w.scale.view(np.uint16)

    def pack(**changed: Any) -> Any:
        given = {
            "columns": 64,
            "group": 32,
            "act_bits": 8,
            "act_group": 64,
            "rotate": 64,
            "clip": True,
            "count_rows": 0,
        }
        return _cpu.pack_bipolar(w.planes, scale, None, **{**given, **changed})

    for changed, words in (
        ({"group": 48}, "multiples of 32"),
        ({"act_group": 16}, "multiples of 32"),
        ({"columns": 80}, "ceil"),
        ({"act_bits": 9}, "1 to 8 bits"),
        ({"rotate": 48}, "power of two"),
        ({"group": 64}, "rows, groups"),
        ({"level": "neon"}, "no such kernels"),
    ):
        with pytest.raises(ValueError, match=words):
            pack(**changed)
    with pytest.raises(ValueError, match="not a bipolar weight"):
        _cpu.bipolar_integers(cpu.pack_dense(np.ones((4, 4), np.float32)), np.ones((1, 4), np.float32))
