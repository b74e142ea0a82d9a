"""`CodedWeight`: the same bits back, whatever they are; arrays that were changed are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headway.core.errors import BadFile, BadInput
from headway.kernels.cpu import _cpu
from headway.llm.weights.base import load_weight
from headway.llm.weights.coded import CodedWeight
from headway.llm.weights.dense import DenseWeight, from_bf16, to_bf16
from headway.llm.weights.huffman import code_lengths

BELOW_240 = st.tuples(st.integers(0, 239), st.integers(0, 255)).map(
    lambda p: (p[1] & 128) << 8 | p[0] << 7 | p[1] & 127
)


def weight(value: np.ndarray, **more: object) -> CodedWeight:
    return CodedWeight(value, code_lengths(_cpu.dfloat11_count(value)), **more)  # type: ignore[arg-type]


def gaussian(rows: int, columns: int) -> np.ndarray:
    return to_bf16(np.random.default_rng(rows).standard_normal((rows, columns), dtype=np.float32) * np.float32(0.03))


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint16, st.tuples(st.integers(1, 35), st.integers(1, 20)), elements=BELOW_240))
def test_random_bits_come_back(value):
    coded = weight(value)
    again = load_weight("dfloat11", coded.tensors(), coded.meta())
    assert np.array_equal(coded.bits(), value)
    assert np.array_equal(again.bits(), value)
    assert np.array_equal(coded.dequantize().view(np.uint32), from_bf16(value).view(np.uint32))


@pytest.mark.parametrize("value", [np.full((1, 1), 0x8000, "u2"), np.full((90, 33), 0x3F80, "u2")])
def test_one_element_and_equal_elements_come_back(value):
    assert np.array_equal(weight(value).bits(), value)
    assert weight(value).lengths.max() == 1


def test_ten_million_weights_come_back_in_eleven_bits():
    value = gaussian(2500, 4000)
    coded = weight(value)
    assert np.array_equal(coded.bits(), value)
    assert coded.bits_per_weight < 10.8


def test_what_is_stored_stays_the_same_when_the_kernel_has_taken_it():
    coded = weight(gaussian(50, 70))
    before = {name: array.copy() for name, array in coded.tensors().items()}
    size, meta = coded.nbytes, coded.meta()
    coded.native()
    assert all(np.array_equal(coded.tensors()[name], array) for name, array in before.items())
    assert (coded.nbytes, coded.meta()) == (size, meta)
    with pytest.raises(ValueError, match="read-only"):
        coded.tensors()["code"][0] = 1


def test_a_resident_weight_is_dense_in_memory_and_coded_in_its_file():
    value = gaussian(33, 100)
    resident = weight(value, resident=True)
    again = CodedWeight.load(resident.tensors(), resident.meta())
    x = np.random.default_rng(0).standard_normal((3, 100), dtype=np.float32)
    dense = DenseWeight(from_bf16(value), "bf16").native()
    assert again.resident and again.native().kind == "dense"
    assert resident.nbytes == weight(value).nbytes
    assert np.array_equal(again.matmul(x), dense.matmul(x))
    assert np.array_equal(again.bits(), value)


def test_rows_and_products_are_those_of_the_expanded_matrix():
    value = gaussian(70, 45)
    x = np.random.default_rng(0).standard_normal((4, 45), dtype=np.float32)
    assert np.array_equal(weight(value).rows(np.array([69, 0, 16])), from_bf16(value)[[69, 0, 16]])
    assert np.array_equal(weight(value).matmul(x), DenseWeight(from_bf16(value), "bf16").native().matmul(x))


@pytest.mark.parametrize("name", ["code", "sign_mantissa", "gaps", "positions", "codebook"])
@pytest.mark.parametrize("change", ["flip", "cut", "drop", "type"])
def test_changed_arrays_are_refused_by_the_groups_name(name, change):
    coded = weight(gaussian(64, 600), group="layers.3")
    stored = {key: array.copy() for key, array in coded.tensors().items()}
    if change == "flip":
        stored[name].view(np.uint8)[len(stored[name]) // 2] ^= 4
    elif change == "cut":
        stored[name] = stored[name][:-1]
    elif change == "drop":
        del stored[name]
    else:
        stored[name] = stored[name].astype(np.float32)
    with pytest.raises(BadFile, match=r"dfloat11 group layers\.3"):
        CodedWeight.load(stored, coded.meta())


@pytest.mark.parametrize("change", [{"crc32": 1}, {"out_features": 63}, {"in_features": "x"}, {"out_features": -64}])
def test_changed_descriptions_are_refused(change):
    coded = weight(gaussian(64, 60), group="layers.3")
    with pytest.raises(BadFile, match=r"layers\.3"):
        CodedWeight.load(coded.tensors(), {**coded.meta(), **change})


def test_a_stream_that_was_made_to_fit_its_checksum_is_refused_when_it_is_decoded():
    coded = weight(gaussian(64, 1024), group="head")
    stored = {key: array.copy() for key, array in coded.tensors().items()}
    stored["code"][4096 + 50 : 4096 + 90] = 0
    forged = CodedWeight.__new__(CodedWeight)
    forged._set(stored, coded.shape, "head", False)
    loaded = CodedWeight.load(stored, forged.meta())
    with pytest.raises(BadFile, match="group head, code: byte 4096: block 1"):
        loaded.native()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5,)])
def test_empty_matrices_are_refused(shape):
    with pytest.raises(BadInput, match="cannot be coded"):
        CodedWeight(np.zeros(shape, np.uint16), np.zeros(256, np.uint8))
