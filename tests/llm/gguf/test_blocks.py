"""The value of every GGUF block is the value that the `gguf` package gives it, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from headway.llm.gguf.blocks import BLOCKS, Affine, affine, dequantise
from headway.llm.stored_form import grouped

ROWS, BLOCKS_A_ROW = 24, 4
QUANTISED = [kind for kind, block in BLOCKS.items() if block.bits]
NAMES = [BLOCKS[kind].name for kind in QUANTISED]


def random_raw(kind: int, seed: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Random bytes of a matrix whose scales are finite; every other bit pattern is as likely as any."""
    block = BLOCKS[kind]
    count = ROWS * BLOCKS_A_ROW
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (count, block.nbytes), dtype=np.uint8)
    while True:
        with np.errstate(all="ignore"):
            values = gguf.dequantize(raw, gguf.GGMLQuantizationType(kind))
        bad = ~np.isfinite(values.reshape(count, -1)).all(axis=1)
        if not bad.any():
            return raw.reshape(-1), (ROWS, BLOCKS_A_ROW * block.size)
        raw[bad] = random.integers(0, 256, (int(bad.sum()), block.nbytes), dtype=np.uint8)


def oracle(raw: np.ndarray, kind: int, shape: tuple[int, int]) -> np.ndarray:
    return gguf.dequantize(raw.reshape(shape[0], -1), gguf.GGMLQuantizationType(kind)).reshape(shape)


@pytest.mark.parametrize("kind", BLOCKS, ids=[block.name for block in BLOCKS.values()])
def test_every_type_is_read_bit_for_bit(kind: int) -> None:
    for seed in range(8):
        raw, shape = random_raw(kind, seed)
        ours, theirs = dequantise(raw, kind, shape), oracle(raw, kind, shape)
        assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_sizes_are_the_formats_own() -> None:
    for kind, block in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] == (block.size, block.nbytes)


@pytest.mark.parametrize("kind", QUANTISED, ids=NAMES)
def test_codes_scale_and_minimum_give_the_value_in_any_order_of_operations(kind: int) -> None:
    """In float32 with two roundings, and with one (a fused multiply-add), by exact arithmetic in float64."""
    for seed in range(4):
        raw, shape = random_raw(kind, seed)
        parts = affine(raw, kind, shape)
        scale, minimum = (np.repeat(a, parts.group, axis=1) for a in (parts.scale, parts.minimum))
        value = oracle(raw, kind, shape)
        assert np.array_equal(parts.codes.astype(np.float32) * scale + minimum, value)
        fused = parts.codes * scale.astype(np.float64) + minimum.astype(np.float64)
        assert np.array_equal(fused.astype(np.float32), value)
        assert parts.codes.max() < 1 << parts.bits
        if parts.zero is not None:
            assert np.array_equal(minimum, np.float32(-parts.zero) * scale)


@pytest.mark.parametrize("kind", QUANTISED, ids=NAMES)
def test_the_integer_weight_of_a_matrix_has_exactly_its_value(kind: int) -> None:
    raw, shape = random_raw(kind, 5)
    parts = affine(raw, kind, shape)
    weight = grouped(parts)
    assert np.array_equal(weight.dequantize(), oracle(raw, kind, shape))
    assert weight.form == ("int4" if parts.bits <= 4 else "int8")


@pytest.mark.parametrize(("kind", "bits"), [(2, 4.5), (3, 5.0), (8, 8.5)], ids=["Q4_0", "Q4_1", "Q8_0"])
def test_half_precision_scales_stay_half_precision(kind: int, bits: float) -> None:
    """A file's blocks take no more room as weights (Q4_0 gains a minimum, half a bit)."""
    raw, shape = random_raw(kind, 6)
    raw = raw.reshape(-1, BLOCKS[kind].nbytes).copy()
    raw[:, 1] = (raw[:, 1] & 0x80) | 0x30  # scales of ordinary size
    weight = grouped(affine(raw.reshape(-1), kind, shape))
    assert weight.bits_per_weight == bits + (0.5 if kind == 2 else 0.0)


def test_a_large_matrix_is_cut_into_pieces_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, shape = random_raw(12, 7)
    whole = affine(raw, 12, shape)
    monkeypatch.setattr("headway.llm.gguf.blocks._CHUNK_BLOCKS", 5)
    pieces = affine(raw, 12, shape)
    assert np.array_equal(whole.codes, pieces.codes)
    assert np.array_equal(whole.minimum, pieces.minimum)
    assert np.array_equal(dequantise(raw, 12, shape), whole.values())


def test_a_code_at_the_zero_keeps_the_sign_of_its_scale() -> None:
    codes = np.full((1, 32), 8, np.uint8)
    parts = Affine(codes, np.full((1, 1), -2.0, "f4"), np.full((1, 1), 16.0, "f4"), 32, 4, 8)
    assert np.signbit(parts.values()).all()
