"""Coded exponents: the stream against brute force, all instruction sets against one another, damage without a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights.dense import DenseWeight, from_bf16, to_bf16
from headway.llm.weights.huffman import code_lengths, codes, tables

SHAPES = ((1, 1), (16, 32), (33, 100), (7, 45), (80, 576), (200, 96))


def normal(shape: tuple[int, int], spread: float = 0.0, seed: int = 0) -> np.ndarray:
    """bfloat16 bits of Gaussian weights, each times e to the power of another Gaussian of that spread."""
    rng = np.random.default_rng([seed, *shape])
    value = rng.standard_normal(shape) * 0.03 * np.exp(spread * rng.standard_normal(shape))
    return to_bf16(value.astype(np.float32))


def wild(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random bits with exponents below 240."""
    value = np.random.default_rng([seed, *shape]).integers(0, 1 << 16, shape).astype(np.uint16)
    value[(value >> 7 & 0xFF) >= 240] &= 0x3FFF
    return value


def encoded(value: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The stream's four arrays, and the lengths of its codes."""
    lengths = code_lengths(_cpu.dfloat11_count(value))
    return _cpu.dfloat11_encode(value, lengths), lengths


def packed(value: np.ndarray) -> Any:
    arrays, lengths = encoded(value)
    return _cpu.pack_dfloat11(*arrays, lengths, *value.shape)


def in_stream_order(value: np.ndarray) -> np.ndarray:
    """Tiles of 16 rows, each column by column."""
    return np.concatenate([value[at : at + 16].T.ravel() for at in range(0, len(value), 16)])


@pytest.mark.parametrize(
    "value", [normal((33, 300)), normal((40, 130), 9.0), wild((20, 70)), np.full((5, 9), 0xBF80, "u2")]
)
def test_the_stream_is_what_brute_force_makes_of_the_codes(value):
    (code, sign_mantissa, gaps, positions), lengths = encoded(value)
    ordered = in_stream_order(value)
    book = codes(lengths)
    text, starts = [], []
    at = 0
    for exponent in (ordered >> 7 & 0xFF).tolist():
        word, bits = book[exponent]
        text.append(format(word, f"0{bits}b"))
        starts.append(at)
        at += bits
    assert np.array_equal(np.unpackbits(code), np.array([*"".join(text).ljust(len(code) * 8, "0")], np.uint8))
    assert len(code) == -(-at // 8)
    assert np.array_equal(sign_mantissa, (ordered >> 8 & 0x80) | (ordered & 0x7F))
    chunks = np.array(starts) // 64
    offsets = np.unpackbits(gaps)[: -(-len(code) // 8) * 5].reshape(-1, 5) @ (1 << np.arange(4, -1, -1))
    for chunk, first in zip(*np.unique(chunks, return_index=True), strict=True):
        assert offsets[chunk] == starts[first] - 64 * chunk
    first_of_block = [np.searchsorted(starts, 8 * 4096 * block) for block in range(-(-len(code) // 4096))]
    assert positions.tolist() == [*first_of_block, value.size]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "make", [normal, wild, lambda shape: normal(shape, 9.0), lambda shape: np.full(shape, 7, "u2")]
)
def test_every_level_gives_the_same_bits_back(make, shape):
    value = make(shape)
    native = packed(value)
    for level in cpu.levels():
        with cpu.at_level(level):
            assert np.array_equal(_cpu.dfloat11_unpack(native), value)
            assert np.array_equal(_cpu.dfloat11_unpack(packed(value)), value)
            dense = native.dequantize()
            assert np.array_equal(dense.view(np.uint32), from_bf16(value).view(np.uint32))
            ids = np.array([0, shape[0] - 1, shape[0] // 2], np.int32)
            assert np.array_equal(native.gather(ids).view(np.uint32), dense[ids].view(np.uint32))
    lengths = code_lengths(_cpu.dfloat11_count(value))
    assert np.array_equal(_cpu.dfloat11_unpack(native, tables(lengths)), value)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_dense_bfloat16_weight_bit_for_bit(shape):
    value = normal(shape, 2.0)
    coded, dense = packed(value), DenseWeight(from_bf16(value), "bf16").native()
    x = np.random.default_rng(1).standard_normal((11, shape[1])).astype(np.float32)
    for level in cpu.levels():
        with cpu.at_level(level):
            for rows, threads in ((1, 1), (2, 2), (5, 1), (11, 2)):
                for exact in (False, True):
                    ours = coded.matmul(x[:rows], exact=exact, threads=threads)
                    assert np.array_equal(ours, dense.matmul(x[:rows], exact=exact, threads=threads))


def test_long_codes_are_found_beyond_the_look_up():
    exponents = np.repeat(np.arange(20, 46), [1 << min(bit, 18) for bit in range(26)])
    value = np.random.default_rng(0).permutation(exponents).astype(np.uint16)[: 64 * 20000].reshape(64, -1) << 7
    lengths = code_lengths(_cpu.dfloat11_count(value))
    assert lengths.max() > 15
    for level in cpu.levels():
        with cpu.at_level(level):
            assert np.array_equal(_cpu.dfloat11_unpack(packed(value)), value)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.data())
def test_a_damaged_stream_is_refused_or_decoded_but_never_read_out_of_bounds(seed, data):
    rng = np.random.default_rng(seed)
    value = normal((48, 400), 1.0)
    (code, rest, gaps, positions), lengths = encoded(value)
    code, gaps, positions, lengths = code.copy(), gaps.copy(), positions.copy(), lengths.copy()
    what = data.draw(st.sampled_from(["code", "gaps", "positions", "lengths", "short", "zeros", "ones"]))
    if what == "code":
        code[rng.integers(len(code), size=3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
    elif what == "gaps":
        gaps[rng.integers(len(gaps))] ^= 255
    elif what == "positions":
        positions[rng.integers(len(positions))] ^= np.uint32(rng.integers(1, 8))
    elif what == "lengths":
        used = np.flatnonzero(lengths)
        lengths[rng.choice(used)] = rng.integers(0, 40)
    elif what == "short":
        code = code[: rng.integers(1, len(code))]
    else:
        code[:] = 0 if what == "zeros" else 255
    try:
        native = _cpu.pack_dfloat11(code, rest, gaps, positions, lengths, *value.shape)
    except ValueError as error:
        assert error.args
    else:
        assert _cpu.dfloat11_unpack(native).shape == value.shape


def test_damage_is_located():
    value = normal((64, 1024))
    (code, rest, gaps, positions), lengths = encoded(value)
    broken = code.copy()
    broken[2 * 4096 + 100 : 2 * 4096 + 200] = 0
    with pytest.raises(ValueError) as refused:
        _cpu.pack_dfloat11(broken, rest, gaps, positions, lengths, *value.shape)
    assert refused.value.args[0] == 2
    falling = positions.copy()
    falling[2] = 0
    with pytest.raises(ValueError) as refused:
        _cpu.pack_dfloat11(code, rest, gaps, falling, lengths, *value.shape)
    assert refused.value.args[0] == 1


@pytest.mark.parametrize("lengths", [{}, {5: 2}, {5: 1, 6: 1, 7: 1}, {5: 1, 6: 33}, {1: 2, 2: 2, 3: 2}])
def test_lengths_that_are_no_full_prefix_code_are_refused(lengths):
    book = np.zeros(256, np.uint8)
    for exponent, bits in lengths.items():
        book[exponent] = bits
    with pytest.raises(ValueError):
        _cpu.dfloat11_encode(np.full((1, 1), 5 << 7, np.uint16), book)
