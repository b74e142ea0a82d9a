"""A linear block is one convolution: in its outputs, borders included, its gradients and its steps."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headway.core.errors import BadInput
from headway.vision.count import count
from headway.vision.fold import fold, relative_error
from headway.vision.superres.linear_block import LinearBlock, delta_of


def made(inside: int, out: int, kernel: int, wide: int = 12, bias: bool = False, seed: int = 0) -> LinearBlock:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        block = LinearBlock(inside, out, kernel, wide, bias)
        for value in block.parameters():
            nn.init.normal_(value, std=0.3)
    return block


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3, 5]),
    st.booleans(),
    st.integers(1, 7),
    st.integers(1, 7),
)
def test_both_forms_agree_up_to_the_borders(i: int, o: int, k: int, bias: bool, height: int, width: int) -> None:
    block = made(i, o, k, bias=bias)
    x = torch.randn(2, i, height, width, generator=torch.Generator().manual_seed(1))
    short = block(x)
    block.collapsed = False
    assert torch.allclose(block(x), short, atol=1e-5, rtol=1e-5)
    assert torch.allclose(fold(block)(x), short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 6, 5), (6, 4, 5)])
def test_gradients_and_a_step_are_those_of_the_two_convolutions(shape: tuple[int, int, int]) -> None:
    short = made(*shape)
    long = copy.deepcopy(short)
    long.collapsed = False
    x = torch.randn(3, shape[0], 9, 8)
    for block in (short, long):
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        block(x).square().mean().backward()
        optimizer.step()
    for a, b in zip(short.parameters(), long.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert relative_error(b.grad, a.grad) < 1e-4
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 6, 5)])
def test_the_released_code_collapses_to_the_same_weight(shape: tuple[int, int, int]) -> None:
    block = made(*shape)
    both = nn.Sequential(block.expand, block.project)
    weight = both(delta_of(block)).flip(2, 3).transpose(0, 1)
    if block.residual:
        weight = weight + delta_of(block)
    assert torch.allclose(weight, block.collapse()[0], atol=1e-5)
    inside, out, k = shape
    assert count(both, delta_of(block)).macs == inside * k**2 * (k**2 * inside * 12 + 12 * out)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(BadInput, match="odd kernel"):
        LinearBlock(1, 1, 4, 8)
