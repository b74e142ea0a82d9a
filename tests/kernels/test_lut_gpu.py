"""The Triton kernel under Triton's interpreter, and on a card where there is one, against float64."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch

from headway.llm.weights.bitplanes import BitPlanes, to_planes

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def kernel(request) -> tuple[ModuleType, str]:
    """The module, its kernel interpreted where there is no card."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        module = importlib.reload(importlib.import_module("headway.kernels.gpu.lut_gemm"))
        yield module, request.param


def weight(bits: int, rows: int, columns: int, group: int, uniform: bool) -> BitPlanes:
    generator = np.random.default_rng([bits, rows, columns])
    codes = generator.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    groups = (rows, -(-columns // group))
    scale = generator.uniform(0.01, 0.1, groups if uniform else (bits, *groups)).astype(np.float16)
    offset = generator.normal(size=groups).astype(np.float16)
    return BitPlanes(to_planes(codes, bits), scale, offset, in_features=columns, group_size=group)


def test_it_gives_the_product_of_the_dequantised_weight(kernel):
    module, device = kernel
    cases = [(bits, True, 20, 128, 64, 1) for bits in (1, 2, 3, 4)]
    cases += [(bits, False, 16, 100, 32, 1) for bits in (1, 3)] + [(2, True, 5, 40, 64, 3)]
    for bits, uniform, rows, columns, group, batch in cases:
        w = weight(bits, rows, columns, group, uniform)
        x = np.random.default_rng(batch).normal(size=(batch, columns)).astype(np.float32)
        packed = module.pack(w.planes, w.scale, w.offset, columns, group, device)
        y = module.matmul(torch.from_numpy(x).to(device), packed, block_rows=32).cpu().numpy()
        reference = x.astype(np.float64) @ w.dequantize().astype(np.float64).T
        assert np.linalg.norm(y - reference) <= 1e-5 * np.linalg.norm(reference)


def test_the_split_of_columns_and_the_batch_leave_results_alone(kernel):
    module, device = kernel
    w = weight(3, 40, 192, 64, True)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 2, 192)).astype(np.float32)).to(device)
    packed = module.pack(w.planes, w.scale, w.offset, 192, 64, device)
    whole = module.matmul(x, packed, block_rows=64, splits=3)
    assert whole.shape == (2, 2, 40)
    assert torch.allclose(module.matmul(x[1, 0], packed, block_rows=16, splits=3), whole[1, 0], rtol=1e-5, atol=1e-4)
    assert torch.allclose(module.matmul(x, packed, block_rows=64, splits=1), whole, rtol=1e-5, atol=1e-4)


def test_groups_that_cut_a_word_are_refused(kernel):
    module, device = kernel
    w = weight(2, 8, 96, 48, True)
    with pytest.raises(ValueError, match="no multiple of 32"):
        module.pack(w.planes, w.scale, w.offset, 96, 48, device)
