"""`BitPlanes`: exact round trips, the two grids, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.llm.weights.base import load_weight
from headway.llm.weights.bitplanes import BitPlanes, from_planes, to_planes
from headway.llm.weights.grouped import Int4Weight


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 70), st.integers(0, 2**32))
def test_codes_survive_planes(bits, rows, columns, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    planes = to_planes(codes, bits)
    assert planes.shape == (bits, rows, (columns + 7) // 8)
    assert np.array_equal(from_planes(planes, columns), codes)


def uniform(bits=3, rows=6, columns=100, group=32, dtype=np.float16, seed=0, **more) -> BitPlanes:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    groups = (rows, -(-columns // group))
    scale, offset = generator.uniform(0.01, 0.1, groups).astype(dtype), generator.normal(size=groups).astype(dtype)
    return BitPlanes.from_codes(codes, scale, offset, bits=bits, group_size=group, **more)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("binary", [False, True])
def test_a_stored_weight_is_rebuilt_bit_for_bit(dtype, binary):
    weight = uniform(dtype=dtype, table_group=64, crossover=32)
    weight = weight.to_binary() if binary else weight
    again = load_weight("bitplanes", weight.tensors(), weight.meta())
    assert isinstance(again, BitPlanes)
    assert again.meta() == weight.meta()
    assert all(np.array_equal(again.tensors()[name], array) for name, array in weight.tensors().items())
    assert np.array_equal(again.dequantize(), weight.dequantize())


def test_it_stores_bits_and_two_halves_per_group():
    for bits in (1, 2, 3, 4):
        assert uniform(bits, 64, 128, 64).bits_per_weight == bits + 32 / 64
        assert uniform(bits, 64, 128, 64).native().nbytes == 64 * 128 * (bits + 32 / 64) / 8


def test_a_4_bit_ggml_block_is_copied_exactly():
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 16, (48, 576)).astype(np.uint8)
    scale, minimum = (generator.normal(size=(48, 18)).astype(np.float16) for _ in range(2))
    source = Int4Weight(codes, scale, minimum, group_size=32)
    copy = BitPlanes.from_codes(source.codes(), source.scale, source.minimum, bits=4, group_size=32)
    assert np.array_equal(copy.dequantize(), source.dequantize())
    assert np.array_equal(copy.native().dequantize(), source.dequantize())


def test_a_uniform_weight_is_a_binary_one_with_the_same_bits():
    for bits in (1, 2, 3, 4):
        weight = uniform(bits)
        binary = weight.to_binary()
        assert not binary.uniform
        assert np.array_equal(binary.codes(), weight.codes())
        assert np.array_equal(binary.planes, weight.planes)
        scale = weight.scale.astype(np.float64)
        assert all(np.array_equal(binary.scale[i], scale * 2**i / 2) for i in range(bits))
        assert np.allclose(binary.dequantize(), weight.dequantize(), rtol=0, atol=3e-7)
        x = np.random.default_rng(2).normal(size=(2, 100)).astype(np.float32)
        assert np.allclose(binary.matmul_float(x), weight.matmul_float(x), atol=1e-4)


def test_rows_are_those_of_the_whole():
    weight = uniform().to_binary()
    ids = np.array([5, 0, 5])
    assert np.array_equal(weight.rows(ids), weight.dequantize()[ids])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_size": 30}, "multiple of 4"),
        ({"group_size": 0}, "multiple of 4"),
        ({"group_size": 64}, "one number per row and group"),
        ({"table_group": 16}, "neither 32 nor 64"),
        ({"crossover": -1}, "negative"),
        ({"in_features": 90}, "do not hold 90"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, words):
    weight = uniform()
    with pytest.raises(BadInput, match=words):
        BitPlanes(weight.planes, weight.scale, weight.offset, **{**weight.meta(), **change})


def test_floats_that_are_not_finite_or_codes_too_large_are_refused():
    weight = uniform()
    bad = weight.offset.copy()
    bad[2, 1] = np.nan
    with pytest.raises(BadInput, match=r"offset is not finite at \(2, 1\)"):
        BitPlanes(weight.planes, weight.scale, bad, in_features=100, group_size=32)
    with pytest.raises(BadInput, match="code 7 does not fit 2 bits"):
        codes = np.full((4, 32), 7, np.uint8)
        ones = np.ones((4, 1), np.float16)
        BitPlanes.from_codes(codes, ones, ones, bits=2, group_size=32)
    with pytest.raises(BadInput, match="missing"):
        load_weight("bitplanes", {"planes": weight.planes}, weight.meta())
