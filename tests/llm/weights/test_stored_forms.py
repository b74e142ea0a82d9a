"""Stored forms keep the exact value: against GGUF's own dequantisation, through files, and rounded as defined."""

from __future__ import annotations

import gguf
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load, save

from headway.core.errors import BadInput
from headway.core.weight import Weight
from headway.llm.weights.base import load_weight
from headway.llm.weights.dense import DenseWeight, from_bf16, to_bf16
from headway.llm.weights.grouped import Int4Weight, Int8Weight


def random_int4(rng: np.random.Generator, out: int, inside: int, group: int, dtype: type) -> Int4Weight:
    groups = -(-inside // group)
    return Int4Weight(
        rng.integers(0, 16, (out, inside), dtype=np.uint8),
        rng.uniform(0.001, 0.1, (out, groups)).astype(dtype),
        rng.normal(0, 0.5, (out, groups)).astype(dtype),
        group_size=group,
    )


def random_int8(rng: np.random.Generator, out: int, inside: int, group: int, dtype: type, low: bool) -> Int8Weight:
    groups = -(-inside // group)
    return Int8Weight(
        rng.integers(-128, 128, (out, inside), dtype=np.int8),
        rng.uniform(0.001, 0.1, (out, groups)).astype(dtype),
        rng.normal(0, 0.5, (out, groups)).astype(dtype) if low else None,
        group_size=group,
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    out=st.integers(1, 9),
    inside=st.integers(1, 150),
    group=st.sampled_from([16, 32, 48, 64, 128]),
    dtype=st.sampled_from([np.float16, np.float32]),
    form=st.sampled_from(["int4", "int8", "int8 with minimum", "dense"]),
)
def test_a_weight_comes_back_from_a_file_bit_for_bit(
    seed: int, out: int, inside: int, group: int, dtype: type, form: str
) -> None:
    rng = np.random.default_rng(seed)
    weight: Weight
    if form == "int4":
        weight = random_int4(rng, out, inside, group, dtype)
    elif form == "dense":
        weight = DenseWeight(rng.normal(size=(out, inside)), "f16" if dtype is np.float16 else "f32")
    else:
        weight = random_int8(rng, out, inside, group, dtype, "minimum" in form)
    again = load_weight(weight.form, load(save(dict(weight.tensors()))), weight.meta())
    assert again.shape == weight.shape == (out, inside)
    assert again.nbytes == weight.nbytes
    np.testing.assert_array_equal(again.dequantize(), weight.dequantize())
    picked = rng.integers(0, out, 5)
    np.testing.assert_array_equal(again.rows(picked), weight.dequantize()[picked])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), group=st.sampled_from([16, 48, 64]), inside=st.integers(1, 130))
def test_the_value_is_code_times_scale_plus_minimum_in_float32(seed: int, group: int, inside: int) -> None:
    rng = np.random.default_rng(seed)
    weight = random_int4(rng, 3, inside, group, np.float32)
    value = weight.dequantize()
    codes = weight.codes()
    for row in range(3):
        for column in range(inside):
            k = column // group
            product = np.float32(np.float32(codes[row, column]) * weight.scale[row, k])
            assert value[row, column] == np.float32(product + weight.minimum[row, k])


@pytest.mark.parametrize(
    ("kind", "block"),
    [(gguf.GGMLQuantizationType.Q4_1, 20), (gguf.GGMLQuantizationType.Q8_0, 34), (gguf.GGMLQuantizationType.Q4_0, 18)],
)
def test_gguf_blocks_of_32_keep_their_value(kind: gguf.GGMLQuantizationType, block: int) -> None:
    rng = np.random.default_rng(7)
    raw = rng.integers(0, 256, (6, 4, block), dtype=np.uint8)
    header = 4 if kind is gguf.GGMLQuantizationType.Q4_1 else 2
    floats = rng.normal(0, 0.3, (6, 4, header // 2)).astype(np.float16)
    raw[:, :, :header] = floats.view(np.uint8)
    expected = gguf.quants.dequantize(raw.reshape(6, -1), kind)
    scale = floats[:, :, 0]
    body = raw[:, :, header:]
    weight: Weight
    if kind is gguf.GGMLQuantizationType.Q8_0:
        weight = Int8Weight(body.view(np.int8).reshape(6, 128), scale, group_size=32)
    else:
        codes = np.concatenate([body & 15, body >> 4], axis=-1).reshape(6, 128)
        minimum = floats[:, :, 1] if header == 4 else scale * np.float16(-8)
        weight = Int4Weight(codes, scale, minimum, group_size=32)
    np.testing.assert_array_equal(weight.dequantize(), expected)


def test_bytes_count_codes_and_both_numbers_of_a_group() -> None:
    rng = np.random.default_rng(0)
    assert random_int4(rng, 8, 128, 64, np.float16).bits_per_weight == 4 + 32 / 64
    assert random_int4(rng, 8, 128, 32, np.float32).bits_per_weight == 4 + 64 / 32
    assert random_int8(rng, 8, 128, 32, np.float16, low=False).bits_per_weight == 8 + 16 / 32
    assert DenseWeight(np.zeros((4, 4)), "bf16").bits_per_weight == 16


def test_bfloat16_rounds_to_nearest_even() -> None:
    import torch

    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    ours = from_bf16(to_bf16(values))
    theirs = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    codes = np.zeros((2, 32), np.uint8)
    grid = np.ones((2, 1), np.float16)
    with pytest.raises(BadInput, match="multiple of 16"):
        Int4Weight(codes, grid, grid, group_size=20)
    with pytest.raises(BadInput, match="code 16 is over 15"):
        Int4Weight(codes + np.uint8(16), grid, grid, group_size=32)
    with pytest.raises(BadInput, match="scale is float16"):
        Int4Weight(codes, np.ones((2, 2), np.float16), grid, group_size=32)
    with pytest.raises(BadInput, match=r"minimum is not finite at \(1, 0\)"):
        Int4Weight(codes, grid, np.array([[1], [np.nan]], np.float16), group_size=32)
    with pytest.raises(BadInput, match="no weight form 'ternary'"):
        load_weight("ternary", {}, {})
    with pytest.raises(BadInput, match="no tensor 'minimum'"):
        load_weight("int4", {"codes": codes, "scale": grid}, {"group_size": 32, "in_features": 64})
    with pytest.raises(BadInput, match="do not hold 60 codes"):
        load_weight("int4", {"codes": codes}, {"group_size": 32, "in_features": 60})


def test_arrays_of_a_weight_cannot_be_written() -> None:
    weight = random_int4(np.random.default_rng(0), 2, 32, 32, np.float16)
    for array in weight.tensors().values():
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
