"""The Triton kernel under Triton's interpreter, and on a card where there is one, against the CPU's bits."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from test_coded_exponents import normal, wild

from headway.kernels.cpu import _cpu
from headway.llm.weights.huffman import code_lengths, tables

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def kernel(request):
    """The module, its kernel interpreted where there is no card."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        module = importlib.reload(importlib.import_module("headway.kernels.gpu.dfloat11"))
        yield module, request.param


@pytest.mark.parametrize(
    "value",
    [normal((64, 600)), normal((37, 90), 9.0), wild((50, 333)), np.full((1, 1), 0xBF80, "u2")],
    ids=["natural", "every magnitude", "random bits", "one"],
)
def test_it_expands_what_was_coded(kernel, value):
    module, device = kernel
    lengths = code_lengths(_cpu.dfloat11_count(value))
    arrays = _cpu.dfloat11_encode(value, lengths)
    for per_program in (1, 4) if value.size < 5000 else (4,):
        packed = module.pack(*arrays, tables(lengths), value.shape, device)
        expanded = module.expand(packed, per_program)
        assert expanded.dtype == torch.bfloat16
        assert np.array_equal(expanded.cpu().view(torch.int16).numpy().view(np.uint16), value)
