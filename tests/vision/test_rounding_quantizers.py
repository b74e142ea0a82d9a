"""Quantisers keep their levels, are idempotent, and pass the gradients that their papers say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headway.vision.quantizers import Clipped, Range, Symmetric, divergence_threshold, symmetric_codes, through

BITS = st.integers(2, 8)


def values(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(400, generator=torch.Generator().manual_seed(seed))


@given(BITS, st.integers(0, 1000), st.floats(1e-6, 1e3))
def test_weights_have_few_levels_and_stay_where_they_are_rounded_to(bits: int, seed: int, scale: float) -> None:
    weight = values(seed, scale)
    quantiser = Symmetric(bits, weight)
    once = quantiser(weight)
    assert len(once.unique()) <= 2**bits - 1
    assert torch.equal(quantiser(once), once)
    assert torch.allclose(quantiser(-weight), -once)


@given(BITS, st.booleans(), st.integers(0, 1000), st.floats(0.01, 10.0))
def test_inputs_have_few_levels_and_stay_where_they_are_rounded_to(
    bits: int, signed: bool, seed: int, limit: float
) -> None:
    quantiser = Clipped(bits, signed, limit)
    x = values(seed)
    once = quantiser(x)
    assert len(once.unique()) <= (2**bits - 1 if signed else 2**bits)
    assert torch.equal(quantiser(once), once)
    assert float(once.detach().abs().max()) <= limit * (1 + 1e-6) and (signed or float(once.detach().min()) >= 0)
    inside = x.clamp(-limit if signed else 0.0, limit)
    assert float((once - inside).detach().abs().max()) <= 0.5001 * limit / quantiser.top


@pytest.mark.parametrize("signed", [True, False])
def test_a_limit_learns_from_what_is_beyond_it_and_values_from_what_is_within(signed: bool) -> None:
    quantiser = Clipped(4, signed, 1.0)
    x = torch.tensor([-3.0, -0.4, 0.2, 1.0, 1.5, 9.0], requires_grad=True)
    up = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    quantiser(x).backward(up)
    assert x.grad is not None and quantiser.limit.grad is not None
    assert x.grad.tolist() == [0.0, 2.0 if signed else 0.0, 4.0, 8.0, 0.0, 0.0]
    assert float(quantiser.limit.grad) == 16 + 32 - signed * 1


def test_all_gradients_pass_through_a_rounded_weight() -> None:
    weight = values(0).requires_grad_()
    quantiser = Symmetric(4, weight)
    quantiser(weight).backward(torch.arange(400.0))
    assert weight.grad is not None and torch.equal(weight.grad, torch.arange(400.0))
    assert float(quantiser.threshold) < float(weight.detach().abs().max())  # the divergence clips some


def test_zeros_and_a_limit_driven_below_zero_give_numbers() -> None:
    zeros = torch.zeros(8)
    assert torch.equal(Symmetric(8, zeros)(zeros), zeros) and torch.equal(Symmetric(4, zeros)(zeros), zeros)
    for signed in (True, False):
        quantiser = Clipped(8, signed)
        quantiser.limit.data.fill_(-2.0)
        made = quantiser(torch.tensor([-1.0, 0.0, 5.0]))
        assert torch.isfinite(made).all() and float(made.detach().max()) == pytest.approx(Clipped.least)
        quantiser(torch.tensor([5.0])).sum().backward()
        assert quantiser.limit.grad == 1.0  # it can come back
        quantiser.see(zeros)
        assert float(quantiser.limit.detach()) == pytest.approx(Clipped.least)


def test_limits_begin_at_the_largest_value_and_six_at_most() -> None:
    for bits, x, limit in ((8, 2.0, 2.0), (8, 50.0, 6.0)):
        quantiser = Clipped(bits, signed=False)
        quantiser.see(torch.tensor([0.1, x]))
        assert float(quantiser.limit.detach()) == limit


def test_the_divergence_leaves_a_far_outlier_out_and_an_even_spread_whole() -> None:
    even = torch.linspace(0, 1, 4000)
    assert divergence_threshold(even, 8) > 0.9
    assert divergence_threshold(torch.cat([even, torch.tensor([20.0])]), 8) < 5
    assert divergence_threshold(even[:20], 8) == float(even[19])  # too few values to tell


def test_codes_are_whole_and_values_passed_through_are_exact() -> None:
    x = values(3)
    codes = symmetric_codes(x, torch.tensor(0.01), 127)
    assert torch.equal(codes, codes.round()) and float(codes.abs().max()) == 127
    assert torch.equal(through(x.round(), x), x.round())


def test_a_range_holds_zero_exactly() -> None:
    place = Range().train()
    x = torch.tensor([0.3, 0.0, 2.0])
    assert float(place(x)[1].detach()) == 0.0 and place.eval().steps(x).tolist() == [38, 0, 255]
