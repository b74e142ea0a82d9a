"""Torch layers over a stored weight, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.packed_modules import PackedConv1x1, PackedLinear, TensorWeight, pack, site_kind, tensor_of, unpack
from headway.llm.weights.base import load_weight


def test_gradients_pass_through_a_packed_layer_and_no_kernel_is_counted() -> None:
    net = nn.Linear(32, 4)
    packed = pack(net, TensorWeight(net.weight), "x")
    x = torch.randn(3, 32, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, net.weight.detach().sum(0).expand(3, -1))
    assert packed.kernel_calls == 0


def test_packing_and_unpacking_give_the_layer_back() -> None:
    for layer in (
        nn.Linear(5, 7),
        nn.Linear(5, 7, bias=False),
        nn.Conv2d(5, 7, 1, (2, 3)),
        nn.Conv2d(5, 7, 1, bias=False),
    ):
        packed = pack(layer, TensorWeight(layer.weight.flatten(1)), "x")
        back = unpack(packed)
        assert type(back) is type(layer) and back.extra_repr() == layer.extra_repr()
        assert {k: v.tolist() for k, v in back.state_dict().items()} == {
            k: v.tolist() for k, v in layer.state_dict().items()
        }
        assert site_kind(packed) == site_kind(layer) == site_kind(back)


def test_packed_layers_say_their_sizes_as_torchs_do() -> None:
    weight = TensorWeight(torch.ones(7, 5))
    linear, conv = PackedLinear(weight, None), PackedConv1x1(weight, None, (2, 1))
    assert (linear.in_features, linear.out_features, linear.weight.shape) == (5, 7, (7, 5))
    assert (conv.in_channels, conv.out_channels, conv.weight.shape) == (5, 7, (7, 5, 1, 1))
    assert conv(torch.ones(5, 4, 4)).shape == (7, 2, 4), "one picture without a batch"
    assert conv(torch.ones(0, 5, 4, 4)).shape == (0, 7, 2, 4)
    assert list(linear.state_dict()) == [] and linear.bias is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_float_weight_is_stored_as_the_dense_form_and_reads_back_bit_for_bit(dtype: torch.dtype) -> None:
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = TensorWeight(matrix)
    loaded = load_weight(weight.form, weight.tensors(), weight.meta())
    assert np.array_equal(loaded.dequantize(), matrix.float().numpy()) and loaded.nbytes == weight.nbytes
    assert loaded.bits_per_weight == weight.bits_per_weight == 8 * matrix.element_size()
    x = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    exact = x @ matrix.float().numpy().T
    np.testing.assert_allclose(weight.matmul(x), exact, rtol=1e-5)
    np.testing.assert_allclose(weight.native().matmul(x), exact, rtol=1e-4, atol=1e-5)


def test_the_exact_value_is_a_copy_one_may_write_to() -> None:
    weight = TensorWeight(torch.zeros(2, 2))
    tensor_of(weight)[0, 0] = 1
    assert weight.dequantize().sum() == 0


class ComplexFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, dtype=torch.complex64)
        self.nothing = nn.Linear(4, 0)
        self.outer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x.to(torch.complex64)).abs()) + self.nothing(x).sum()


def test_layers_of_complex_or_no_numbers_are_no_sites() -> None:
    net = ComplexFirst().eval()
    assert [site.name for site in ModuleModel(net, torch.zeros(1, 4)).sites()] == ["outer"]
    with torch.no_grad():
        net.inner.weight[0, 0] = complex(0.0, float("nan"))
    with pytest.raises(BadInput, match=r"inner\.weight holds"):
        ModuleModel(net, torch.zeros(1, 4))
