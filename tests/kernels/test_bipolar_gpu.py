"""The Triton kernels under Triton's interpreter, and on a card where there is one, against the CPU's integers."""

from __future__ import annotations

import importlib
import itertools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from headway.kernels.gpu.bipolar_traffic import Product
from headway.llm.weights.bipolar import BipolarWeight, quantised_activations
from headway.llm.weights.grouped import group_count

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def kernel(request) -> tuple[ModuleType, str]:
    """The module, its kernel interpreted where there is no card."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.reload(importlib.import_module("headway.kernels.gpu.bipolar")), request.param


def weight(bits: int, rows: int, columns: int, group: int, offset: bool, **more: int) -> BipolarWeight:
    generator = np.random.default_rng([bits, rows, columns])
    codes = generator.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    groups = (rows, group_count(columns, group or columns))
    scale = generator.uniform(0.01, 0.1, groups).astype(np.float16)
    middle = generator.normal(0, 0.1, groups).astype(np.float16) if offset else None
    return BipolarWeight.from_codes(codes, scale, middle, bits=bits, group_size=group, **more)


def packed(module: ModuleType, device: str, w: BipolarWeight) -> Any:
    sizes = (w.shape[1], w.group_size, w.act_bits, w.act_group, w.rotate, bool(w.clip))
    return module.pack(w.planes, w.scale, w.offset, *sizes, device)


WIDTHS = list(itertools.product(range(1, 9), range(1, 9)))
NARROW = [(n, m) for n, m in WIDTHS if n * m < 9]


@pytest.mark.parametrize(
    ("way", "pairs"),
    [
        ("recover", [(n, (3 * n) % 8 + 1) for n in range(1, 9)]),  # every width on either side
        ("xor", [(1, 1), (1, 5), (2, 2), (4, 2)]),
        pytest.param("recover", WIDTHS, marks=pytest.mark.nightly),
        pytest.param("xor", NARROW, marks=pytest.mark.nightly),
    ],
)
def test_integers_are_the_cpu_s_for_pairs_of_widths(kernel, way, pairs):
    module, device = kernel
    generator = np.random.default_rng(0)
    for n, m in pairs:
        columns = int(generator.choice([1, 31, 64, 100]))
        w = weight(n, 19, columns, int(generator.choice([0, 32])), False, act_bits=m, act_group=64)
        x = generator.normal(size=(3, columns)).astype(np.float32)
        levels, _ = quantised_activations(x, m, 64, 0, 1)
        given = torch.from_numpy(levels.astype(np.int32)).to(device)
        y = module.integers(given, packed(module, device, w), way, block_rows=16, block_batch=16).cpu().numpy()
        assert np.array_equal(y, w.integers(x))


@pytest.mark.parametrize("columns", [255, 576, 2049])
def test_integers_of_long_rows_are_the_cpu_s(kernel, columns):
    module, device = kernel
    x = np.random.default_rng(1).normal(size=(2, columns)).astype(np.float32)
    for way, bits in (("recover", 8), ("xor", 1)):
        w = weight(bits, 5, columns, 0, False, act_bits=bits, act_group=0)
        levels, _ = quantised_activations(x, bits, 0, 0, 1)
        given = torch.from_numpy(levels.astype(np.int32)).to(device)
        y = module.integers(given, packed(module, device, w), way, block_rows=16, block_batch=16).cpu().numpy()
        assert np.array_equal(y, w.integers(x))


def test_products_are_the_cpu_s_but_for_the_order_of_sums(kernel):
    module, device = kernel
    cases = [
        ((4, 8), 128, 64, 64, False),
        ((2, 4), 0, 0, 0, True),
        ((3, 4), 64, 0, 32, False),
        ((8, 8), 0, 64, 64, True),
    ]
    for (n, m), group, act_group, rotate, offset in cases:
        w = weight(n, 20, 200, group, offset, act_bits=m, act_group=act_group, rotate=rotate)
        x = np.random.default_rng(2).normal(size=(3, 200)).astype(np.float32)
        x[2] = 0
        y = w.matmul(x)
        for way in ("recover", "xor") if n * m == 4 else ("recover",):
            device_x = torch.from_numpy(x).to(device)
            here = module.matmul(device_x, packed(module, device, w), way, block_rows=16, block_batch=16).cpu().numpy()
            assert np.allclose(here, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
            assert not here[2].any()


def test_activations_are_rounded_as_on_the_cpu(kernel):
    module, device = kernel
    x = np.random.default_rng(3).normal(size=(4, 200)).astype(np.float32)
    x[1, 7] = np.nan
    for m, act_group, rotate in itertools.product((1, 2, 4, 8), (0, 64), (0, 64)):
        w = packed(module, device, weight(2, 4, 200, 64, False, act_bits=m, act_group=act_group, rotate=rotate))
        found = module.quantise(torch.from_numpy(x).to(device), w)
        levels, scales = quantised_activations(x, m, act_group, rotate, 1)
        clean = [0, 2, 3]
        assert np.array_equal(found.levels.cpu().numpy()[clean], levels[clean])
        assert np.allclose(found.scale.cpu().numpy().T[clean], scales[clean], rtol=1e-6)
        assert np.isnan(found.scale.cpu().numpy()[0, 1])


def test_groups_that_cut_a_word_are_refused(kernel):
    module, device = kernel
    w = weight(2, 8, 96, 32, False)
    with pytest.raises(ValueError, match="no multiple of 32"):
        module.pack(w.planes, w.scale, None, 96, 48, 8, 64, 0, True, device)


def test_xor_is_for_cards_with_1_bit_products(kernel, monkeypatch):
    module, _ = kernel
    assert module.best_way(torch.device("cpu"), 1, 1) == "recover"
    for capability, way in (((7, 0), "recover"), ((8, 6), "xor"), ((9, 0), "recover")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert module.best_way(torch.device("cuda"), 1, 2) == way
        assert module.best_way(torch.device("cuda"), 4, 4) == "recover"


def test_both_schedules_give_the_product_and_recovery_writes_it_once():
    generator = np.random.default_rng(4)
    for n, m, rows, batch in ((3, 4, 70, 50), (1, 1, 64, 64), (8, 8, 10, 33)):
        product = Product(rows, batch, 40, n, m, tile=32)
        w = 2 * generator.integers(0, 1 << n, (rows, 40)) - (2**n - 1)
        x = 2 * generator.integers(0, 1 << m, (batch, 40)) - (2**m - 1)
        inside, apart = product.recover(w, x), product.planes(w, x)
        assert np.array_equal(inside.arrays["y"], w @ x.T)
        assert np.array_equal(apart.arrays["y"], w @ x.T)
        assert apart.output_bytes == n * m * inside.output_bytes == n * m * rows * batch * 4
        assert product.recover().read == inside.read
        assert apart.read["partial"] == apart.written["partial"]
        assert inside.total_bytes < apart.total_bytes
