"""Packed dense and integer weights: exact values, the same bits at every level, thread count and batch size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kernels import cpu

GROUPS = (16, 32, 48, 64, 96, 128, 1 << 20)


def random_integers(seed: int, out: int, columns: int, group: int, bits: int, minima: bool, wide: bool):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (out, columns), dtype=np.uint8)
    grid = (out, -(-columns // group))
    scales, lows = (random.standard_normal(grid).astype(np.float32) for _ in range(2))
    if not wide:
        scales, lows = (a.astype(np.float16).astype(np.float32) for a in (scales, lows))
    return codes, scales, lows if minima else None


def value_of(codes, scales, minima, group: int, zero: int):
    def spread(grid):
        return np.repeat(grid, group, axis=1)[:, : codes.shape[1]] if group < codes.shape[1] else grid

    value = (codes.astype(np.float32) - np.float32(zero)) * spread(scales)
    return value if minima is None else value + spread(minima)


def quantised(x):
    """Activations as the integer kernels see them: codes and one float32 scale per 32 columns."""
    padded = np.zeros((x.shape[0], -(-x.shape[1] // 32) * 32), np.float32)
    padded[:, : x.shape[1]] = x
    blocks = padded.reshape(x.shape[0], -1, 32)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(largest > 0, np.rint(blocks * (np.float32(127) / largest)), 0)
    return (codes.astype(np.float64) * (largest / np.float32(127))).reshape(x.shape[0], -1)[:, : x.shape[1]]


integer_weights = st.tuples(
    st.integers(0, 1 << 30),
    st.integers(1, 67),
    st.integers(1, 200),
    st.sampled_from(GROUPS),
    st.sampled_from((4, 8)),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(integer_weights, st.integers(0, 15))
def test_integer_weights_keep_their_exact_value_and_give_their_codes_back(shape, zero):
    seed, out, columns, group, bits, minima, wide = shape
    codes, scales, lows = random_integers(seed, out, columns, group, bits, minima, wide)
    pack = cpu.pack_int4 if bits == 4 else cpu.pack_int8
    weight = pack(codes, scales, lows, group, zero)
    expected = value_of(codes, scales, lows, group, zero)
    for level in cpu.levels():
        with cpu.at_level(level):
            assert np.array_equal(weight.dequantize(), expected)
    ids = np.arange(out, dtype=np.int32)[::-1].copy()
    assert np.array_equal(weight.gather(ids), expected[::-1])
    back, back_scales, back_lows = weight.unpack()
    assert np.array_equal(back, codes)
    step = 16 if group % 32 and group < columns else group
    assert np.array_equal(value_of(back, back_scales, back_lows, step, zero), expected)


@settings(max_examples=60, deadline=None)
@given(integer_weights, st.integers(1, 40), st.integers(0, 15))
def test_integer_products_have_the_same_bits_at_every_level_and_match_float64(shape, rows, zero):
    seed, out, columns, group, bits, minima, wide = shape
    codes, scales, lows = random_integers(seed, out, columns, group, bits, minima, wide)
    weight = (cpu.pack_int4 if bits == 4 else cpu.pack_int8)(codes, scales, lows, group, zero)
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    products = []
    for level in cpu.levels():
        with cpu.at_level(level):
            products.append((weight.matmul(x), weight.matmul(x, exact=True)))
    for fast, exact in products[1:]:
        assert np.array_equal(fast, products[0][0])
        assert np.array_equal(exact, products[0][1])
    w = value_of(codes, scales, lows, group, zero).astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(w).T + 1e-30
    assert np.max(np.abs(products[0][1] - x.astype(np.float64) @ w.T) / size) < 2e-6
    parts = value_of(codes, np.abs(scales), None if lows is None else np.abs(lows), group, -zero)
    size = np.abs(quantised(x)) @ parts.astype(np.float64).T + 1e-30
    assert np.max(np.abs(products[0][0] - quantised(x) @ w.T) / size) < 2e-6


@pytest.mark.parametrize("level", cpu.levels())
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 64])
def test_a_row_gives_the_same_bits_alone_and_in_any_batch_with_any_threads(level, bits, group):
    codes, scales, lows = random_integers(3, 150, 131, group, bits, True, False)
    weight = (cpu.pack_int4 if bits == 4 else cpu.pack_int8)(codes, scales, lows, group)
    x = np.random.default_rng(4).standard_normal((70, 131)).astype(np.float32)
    with cpu.at_level(level):
        for exact in (False, True):
            alone = np.concatenate([weight.matmul(row[None], exact=exact, threads=1) for row in x])
            for rows in (2, 3, 5, 8, 13, 16, 31, 32, 33, 70):
                for threads in (1, 2, 3):
                    assert np.array_equal(weight.matmul(x[:rows].copy(), exact, threads), alone[:rows])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 70), st.integers(1, 150), st.integers(1, 20))
def test_dense_weights_of_every_storage_are_exact_and_level_independent(seed, out, columns, rows):
    random = np.random.default_rng(seed)
    values = random.standard_normal((out, columns)).astype(np.float32)
    x = random.standard_normal((rows, columns)).astype(np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    stored = {
        "f32": (values, values),
        "f16": (values.astype(np.float16), values.astype(np.float16).astype(np.float32)),
        "bf16": (bf16, (bf16.astype(np.uint32) << 16).view(np.float32)),
    }
    for given_values, exact in stored.values():
        weight = cpu.pack_dense(given_values)
        products = []
        for level in cpu.levels():
            with cpu.at_level(level):
                assert np.array_equal(weight.dequantize(), exact)
                products.append(weight.matmul(x))
                assert np.array_equal(products[-1], weight.matmul(x, exact=True))
        assert all(np.array_equal(product, products[0]) for product in products)
        wide = exact.astype(np.float64)
        size = np.abs(x).astype(np.float64) @ np.abs(wide).T + 1e-30
        assert np.max(np.abs(products[0] - x.astype(np.float64) @ wide.T) / size) < 2e-6


@pytest.mark.parametrize("level", cpu.levels())
@pytest.mark.parametrize("rows", [1, 3, 9, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_make_their_row_nan_and_no_other(level, rows, bad):
    codes, scales, lows = random_integers(5, 35, 100, 32, 4, True, False)
    x = np.ones((rows, 100), np.float32)
    x[rows // 2, 70] = bad
    for weight in (cpu.pack_int4(codes, scales, lows, 32), cpu.pack_int8(codes, scales, None, 32, 8)):
        with cpu.at_level(level):
            y = weight.matmul(x)
        assert np.isnan(y[rows // 2]).all()
        assert np.isfinite(np.delete(y, rows // 2, axis=0)).all()


@pytest.mark.parametrize("level", cpu.levels())
def test_zero_and_denormal_activations_are_harmless(level):
    codes, scales, _ = random_integers(6, 20, 64, 32, 8, False, True)
    weight = cpu.pack_int8(codes, scales, None, 32, 128)
    x = np.zeros((3, 64), np.float32)
    x[1] = 1e-42
    x[2, :32], x[2, 32:] = 1e-42, 1.0
    with cpu.at_level(level):
        y = weight.matmul(x)
        alone = weight.matmul(np.where(x < 0.5, 0, x).astype(np.float32))
    assert not y[:2].any()
    assert np.array_equal(y[2], alone[2])


def test_half_precision_headers_are_used_only_where_they_lose_nothing():
    codes, scales, lows = random_integers(7, 16, 64, 32, 4, True, False)
    narrow, wide = cpu.pack_int4(codes, scales, lows, 32), cpu.pack_int4(codes, scales + 1e-6, lows, 32)
    assert narrow.nbytes == 2 * (256 + 64)
    assert wide.nbytes == 2 * (256 + 128)


def test_signed_bytes_are_taken_as_they_are():
    codes = np.random.default_rng(8).integers(-128, 128, (33, 70)).astype(np.int8)
    scales = np.full((33, 3), 0.25, np.float32)
    weight = cpu.pack_int8(codes, scales, None, 32)
    assert np.array_equal(weight.dequantize(), codes.astype(np.float32) * 0.25)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"group": 24}, "group must be"),
        ({"codes": np.full((4, 64), 16, np.uint8)}, "above 15"),
        ({"codes": np.zeros((0, 64), np.uint8)}, "empty"),
        ({"scales": np.ones((4, 3), np.float32)}, "scales must be"),
        ({"minima": np.ones((3, 2), np.float32)}, "minima must be"),
        ({"zero": 16}, "zero must be"),
    ],
)
def test_shapes_and_codes_that_do_not_fit_are_refused(change, says):
    given_values = {"codes": np.ones((4, 64), np.uint8), "scales": np.ones((4, 2), np.float32), "minima": None}
    with pytest.raises(ValueError, match=says):
        cpu.pack_int4(**{**given_values, "group": 32, "zero": 0, **change})


def test_products_refuse_activations_of_another_width():
    weight = cpu.pack_dense(np.ones((4, 8), np.float32))
    with pytest.raises(ValueError, match="columns"):
        weight.matmul(np.ones((1, 9), np.float32))
    with pytest.raises(ValueError, match="row index"):
        weight.gather(np.array([4], np.int32))


@pytest.mark.parametrize("kind", ["int4", "int8", "signed", "f32", "f16", "bf16"])
def test_a_matrix_given_in_pieces_packs_to_the_same_bits_and_every_row_is_asked_for_once(kind):
    out, columns = 1700, 1300  # some pieces of a megabyte, the last one short and its tile too
    random = np.random.default_rng(3)
    grids = [random.standard_normal((out, -(-columns // 32))).astype(np.float32) for _ in range(2)]
    if kind in ("int4", "int8", "signed"):
        codes = random.integers(0, 16 if kind == "int4" else 256, (out, columns), dtype=np.uint8)
        codes = codes.view(np.int8) if kind == "signed" else codes
        values = codes

        def pack(rows):
            return (cpu.pack_int4 if kind == "int4" else cpu.pack_int8)(rows, *grids, 32)
    else:
        floats = random.standard_normal((out, columns)).astype(np.float32)
        values = {"f32": floats, "f16": floats.astype(np.float16), "bf16": (floats.view(np.uint32) >> 16)}[kind]
        values = values.astype(np.uint16) if kind == "bf16" else values
        pack = cpu.pack_dense
    asked = []

    def read(begin, end):
        asked.append((begin, end))
        return values[begin:end]

    whole, pieces = pack(values), pack(cpu.Rows(values.shape, values.dtype, read))
    assert np.array_equal(whole.dequantize(), pieces.dequantize())
    x = random.standard_normal((3, columns)).astype(np.float32)
    assert np.array_equal(whole.matmul(x), pieces.matmul(x))
    assert len(asked) > 1
    assert [row for begin, end in asked for row in range(begin, end)] == list(range(out))


def test_a_piece_that_does_not_fit_or_cannot_be_read_leaves_no_weight():
    scales = np.ones((64, 1), np.float32)

    def failing(begin, end):
        raise OSError("the disk is gone")

    for read, error, says in (
        (lambda begin, end: np.zeros((end - begin - 1, 32), np.uint8), ValueError, "wrong shape"),
        (lambda begin, end: np.full((end - begin, 32), 16, np.uint8), ValueError, "above 15"),
        (failing, OSError, "disk is gone"),
    ):
        before = cpu.memory()["weights"]["current"]
        with pytest.raises(error, match=says):
            cpu.pack_int4(cpu.Rows((64, 32), np.uint8, read), scales, None, 32)
        assert cpu.memory()["weights"]["current"] == before
