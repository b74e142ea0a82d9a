"""Look-up kernels of bit-plane weights: against float64, against brute force, and bit for bit between levels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights.bitplanes import BitPlanes, to_planes
from headway.llm.weights.grouped import Int4Weight

SHAPES = ((33, 100), (48, 576), (5, 36))
GRIDS = ("uniform", "binary")


def weight(
    bits: int,
    rows: int,
    columns: int,
    group: int,
    grid: str = "uniform",
    dtype: Any = np.float16,
    seed: int = 0,
    **more: Any,
) -> BitPlanes:
    generator = np.random.default_rng([seed, bits, rows, columns, group])
    codes = generator.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    groups = -(-columns // group)
    scale = generator.uniform(0.01, 0.03, (rows, groups) if grid == "uniform" else (bits, rows, groups)).astype(dtype)
    offset = generator.normal(0, 0.03, (rows, groups)).astype(dtype)
    return BitPlanes(to_planes(codes, bits), scale, offset, in_features=columns, group_size=group, **more)


def packed(weight: BitPlanes, level: str) -> Any:
    """The native form for the kernels of that name, whatever the machine would choose."""
    as_bits = np.uint16 if weight.offset.dtype == np.float16 else np.float32
    scale = weight.scale[None] if weight.uniform else weight.scale
    sizes = (weight.shape[1], weight.group_size, weight.uniform, weight.table_group, weight.crossover)
    return _cpu.pack_lut(weight.planes, scale.view(as_bits), weight.offset.view(as_bits), *sizes, level=level)


def inputs(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def exact(weight: BitPlanes, x: np.ndarray) -> np.ndarray:
    """The product in float64 of the dequantised weight."""
    return x.astype(np.float64) @ weight.dequantize().astype(np.float64).T


def error(y: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


CASES = list(itertools.product((1, 2, 3, 4), GRIDS, (np.float16, np.float32), (4, 20, 32, 64, 96, 128), SHAPES))


def test_the_packed_form_holds_the_exact_values():
    for bits, grid, dtype, group, (rows, columns) in CASES:
        w = weight(bits, rows, columns, group, grid, dtype)
        assert np.array_equal(w.native().dequantize(), w.dequantize())
        ids = np.array([rows - 1, 0, 3, 0], np.int32)
        assert np.array_equal(w.native().gather(ids), w.dequantize()[ids])


def test_float_tables_give_the_product_to_1e_5():
    for bits, grid, dtype, group, (rows, columns) in CASES:
        w, x = weight(bits, rows, columns, group, grid, dtype), inputs(2, columns)
        assert error(w.matmul_float(x), exact(w, x)) <= 1e-5


@pytest.mark.parametrize("table_group", [32, 64])
@pytest.mark.parametrize("draw", ["normal", "laplace", "student"])
def test_int8_tables_give_the_product_to_1e_2(table_group, draw):
    generator = np.random.default_rng(3)
    shape = (4, 1536)
    x = {
        "normal": generator.normal(size=shape),
        "laplace": generator.laplace(size=shape),
        "student": generator.standard_t(4, size=shape),
    }[draw].astype(np.float32)
    for bits, group in itertools.product((1, 2, 3, 4), (32, 64, 128)):
        codes = generator.integers(0, 1 << bits, (64, 1536)).astype(np.uint8)
        scale = generator.uniform(0.01, 0.03, (64, 1536 // group)).astype(np.float16)
        centred = (-scale * ((1 << bits) - 1) / 2).astype(np.float16)
        w = BitPlanes.from_codes(codes, scale, centred, bits=bits, group_size=group, table_group=table_group)
        assert error(w.matmul(x), exact(w, x)) <= 1e-2


def test_every_level_thread_count_and_batch_gives_the_same_bits():
    for bits, grid, group, (rows, columns) in itertools.product((1, 2, 3, 4), GRIDS, (20, 32, 64, 128), SHAPES):
        w, x = weight(bits, rows, columns, group, grid, table_group=64), inputs(7, columns)
        y = w.matmul(x)
        assert all(np.array_equal(w.matmul(x[i : i + 1])[0], y[i]) for i in range(len(x)))
        assert np.array_equal(w.native().matmul(x, threads=1), y)
        for level in _cpu.lut_levels():
            native = packed(w, level)
            assert _cpu.lut_level(native) == level
            assert np.array_equal(native.matmul(x), y), level
            assert np.array_equal(native.dequantize(), w.dequantize()), level


def test_sums_of_entries_are_exact_integers():
    """Activations whose largest quad sums to 127 make entries that are the sums themselves."""
    generator = np.random.default_rng(5)
    for bits, group, columns in itertools.product((1, 2, 3, 4), (32, 64, 128), (256, 320)):
        x = generator.integers(-31, 32, (1, columns)).astype(np.float32)
        x[0, ::32] = np.array(127 - np.abs(x[0]).reshape(-1, 32)[:, 1:4].sum(1))
        codes = generator.integers(0, 1 << bits, (16, columns)).astype(np.uint8)
        groups = -(-columns // group)
        ones, zeros = np.ones((16, groups), np.float16), np.zeros((16, groups), np.float16)
        w = BitPlanes.from_codes(codes, ones, zeros, bits=bits, group_size=group, table_group=64)
        assert np.array_equal(w.matmul(x), x @ codes.T.astype(np.float32))


def test_the_largest_sums_do_not_overflow():
    for bits, columns, sign in itertools.product((1, 2, 3, 4), (128, 1536), (1.0, -1.0)):
        codes = np.full((16, columns), (1 << bits) - 1, np.uint8)
        ones, zeros = np.ones((16, 1), np.float16), np.zeros((16, 1), np.float16)
        w = BitPlanes.from_codes(codes, ones, zeros, bits=bits, group_size=columns, table_group=64)
        x = np.full((2, columns), sign, np.float32)
        for level in _cpu.lut_levels():
            y = packed(w, level).matmul(x)
            assert np.allclose(y, sign * columns * ((1 << bits) - 1), rtol=1e-6)


def test_from_the_crossover_on_the_product_is_the_integer_kernel_s():
    for bits, group, (rows, columns) in itertools.product((1, 2, 3, 4), (32, 64, 128), SHAPES):
        w = weight(bits, rows, columns, group, crossover=3)
        dense = Int4Weight(w.codes(), w.scale, w.offset, group_size=group).native()
        x = inputs(5, columns)
        before = _cpu.lut_counts()
        expected = w.matmul(x[:2])
        for level in _cpu.lut_levels():
            again = packed(w, level)
            assert np.array_equal(again.matmul(x), dense.matmul(x))
            assert np.array_equal(again.matmul(x[:2]), expected)
        after = _cpu.lut_counts()
        tiles = -(-rows // 16) * len(_cpu.lut_levels())
        assert after["dense"] - before["dense"] == tiles
        assert after["looked_up"] - before["looked_up"] == tiles + -(-rows // 16)


def test_non_finite_activations_make_their_row_nan_and_no_other():
    for bits, grid, bad, crossover in itertools.product((1, 3, 4), GRIDS, (np.nan, np.inf, -np.inf), (0, 2)):
        w, x = weight(bits, 33, 100, 32, grid, crossover=crossover), inputs(3, 100)
        clean = w.matmul(x)
        x[1, 57] = bad
        y = w.matmul(x)
        assert np.isnan(y[1]).all()
        assert np.array_equal(y[[0, 2]], clean[[0, 2]])


def test_zero_and_vanishing_activations_give_zero():
    w = weight(3, 33, 100, 32)
    assert not w.matmul(np.zeros((1, 100), np.float32)).any()
    assert np.abs(w.matmul(np.full((1, 100), 1e-38, np.float32))).max() < 1e-36
    x = np.zeros((1, 100), np.float32)
    x[0, 50] = 1.0
    assert error(w.matmul(x), exact(w, x)) <= 1e-2


def test_large_activations_stay_finite():
    w, x = weight(3, 33, 100, 32), inputs(1, 100) * np.float32(1e30)
    assert error(w.matmul(x), exact(w, x)) <= 1.2e-2


def test_a_lower_level_uses_lower_kernels():
    w = weight(3, 16, 64, 32)
    for level in cpu.levels():
        with cpu.at_level(level):
            name = _cpu.lut_level(BitPlanes.load(w.tensors(), w.meta()).native())
        assert name.startswith(level)


def test_packing_refuses_what_does_not_fit():
    w = weight(3, 16, 64, 32)
    scale, offset = w.scale[None].view(np.uint16), w.offset.view(np.uint16)
    with pytest.raises(ValueError, match="multiple of 4"):
        _cpu.pack_lut(w.planes, scale, offset, 64, 30, True, 32, 0)
    with pytest.raises(ValueError, match="ceil"):
        _cpu.pack_lut(w.planes, scale, offset, 80, 32, True, 32, 0)
    with pytest.raises(ValueError, match="scales"):
        _cpu.pack_lut(w.planes, scale, offset, 64, 16, True, 32, 0)
    with pytest.raises(ValueError, match="no such kernels"):
        _cpu.pack_lut(w.planes, scale, offset, 64, 32, True, 32, 0, level="neon")
    with pytest.raises(ValueError, match="segment"):
        _cpu.pack_lut(w.planes, scale, offset, 64, 32, True, 16, 0)


@pytest.mark.parametrize("rival", [0, 1, 2])
def test_rivals_multiply_the_same_weights(rival):
    for group, (rows, columns) in itertools.product((32, 64, 128), SHAPES):
        w, x = weight(3, rows, columns, group), inputs(3, columns)
        for level in cpu.levels():
            with cpu.at_level(level):
                packed = _cpu.pack_rival(rival, w.codes(), w.scale.view(np.uint16), w.offset.view(np.uint16), group)
                assert np.array_equal(packed.dequantize(), w.dequantize())
                assert error(packed.matmul(x), exact(w, x)) <= (1e-6 if rival == 2 else 1.5e-2)
                full = group < columns or columns % 32 == 0
                assert not full or packed.nbytes == w.native().nbytes


def test_timing_gives_every_product_and_runs_the_kernels():
    w, x = weight(3, 32, 64, 32).native(), inputs(1, 64)
    before = _cpu.lut_counts()["looked_up"]
    assert _cpu.time_matmul([[w, w], [w]], x, 3, 1, True).shape == (3, 2)
    assert _cpu.lut_counts()["looked_up"] - before == 3 * 3 * 2
    assert (_cpu.time_form(w, x, 4) >= 0).all()
    assert _cpu.time_read([[w, w], [w]], 4, 1).shape == (4, 2)
