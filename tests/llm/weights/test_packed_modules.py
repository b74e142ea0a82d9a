"""Packed modules compute what the torch layer with the dequantised weight computes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.grouped import Int4Weight
from headway.llm.weights.modules import linear_sites, matrix_of, with_packed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 48)
        self.stem = nn.Conv2d(3, 48, 3)
        self.point = nn.Conv2d(48, 24, 1, stride=2)
        self.depth = nn.Conv2d(24, 24, 3, groups=24)
        self.head = nn.Linear(24, 5)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.stem(image) + self.embed(ids)[:, :, None, None]
        return self.head(self.depth(self.point(x)).mean((-1, -2)))


def quantised(matrix: np.ndarray, rng: np.random.Generator) -> Int4Weight:
    out, inside = matrix.shape
    groups = -(-inside // 32)
    return Int4Weight(
        rng.integers(0, 16, (out, inside), dtype=np.uint8),
        np.full((out, groups), 0.02, np.float16),
        np.full((out, groups), -0.15, np.float16),
        group_size=32,
    )


def test_linear_and_pointwise_convolutions_are_the_sites() -> None:
    assert [(site.name, site.kind, site.in_features) for site, _ in linear_sites(Net())] == [
        ("point", "conv1x1", 48),
        ("head", "linear", 24),
    ]


def test_a_packed_copy_equals_the_module_with_the_dequantised_values() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = Net()
    weights = {name: quantised(matrix_of(net.get_submodule(name)), rng) for name in ("embed", "point", "head")}
    copy = with_packed(net, weights)
    with torch.no_grad():
        before = net(torch.ones(2, 3, 9, 9), torch.tensor([1, 2]))
        for name, weight in weights.items():
            module = net.get_submodule(name)
            module.weight = nn.Parameter(torch.from_numpy(weight.dequantize()).reshape(module.weight.shape))
        image, ids = torch.randn(2, 3, 9, 9), torch.tensor([3, 10])
        torch.testing.assert_close(copy(image, ids), net(image, ids), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before, net(torch.ones(2, 3, 9, 9), torch.tensor([1, 2])))


def test_a_packed_copy_shares_what_it_does_not_replace_and_the_original_stays() -> None:
    net = Net()
    copy = with_packed(net, {"head": DenseWeight(np.zeros((5, 24), np.float32))})
    assert copy.stem.weight is net.stem.weight
    assert isinstance(net.head, nn.Linear)
    again = with_packed(copy, {"point": DenseWeight(matrix_of(net.point))})
    assert again.head.packed is copy.head.packed


def test_gradients_pass_through_a_packed_layer() -> None:
    net = nn.Linear(32, 4)
    copy = with_packed(nn.Sequential(net), {"0": DenseWeight(matrix_of(net))})
    x = torch.randn(3, 32, requires_grad=True)
    copy(x).sum().backward()
    torch.testing.assert_close(x.grad, net.weight.sum(0).expand(3, -1))
