"""What is selected, in which order, and what becomes of the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.vision.backbones.token_selector import TokenSelector


def selector(channels: int = 4, reduction: int = 4, scale: float = 0.1) -> TokenSelector:
    return TokenSelector(channels, reduction, scale).eval()


def test_the_most_important_come_first_and_equal_ones_by_place() -> None:
    chosen = selector(reduction=2).choose(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0] * 6]), 3)
    assert chosen.tolist() == [[1, 3, 2], [0, 1, 2]]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_selected_tokens_are_replaced_with_weight_and_the_others_grow_by_theirs(
    batch: int, tokens: int, reduction: int, seed: int
) -> None:
    x = torch.randn(batch, tokens, 4, generator=torch.Generator().manual_seed(seed))
    chooser = selector(reduction=reduction)
    if tokens < reduction:
        with pytest.raises(BadInput, match=f"one token in {reduction} of {tokens} is none"):
            chooser(x)
        return
    chosen = chooser(x)
    mixed = torch.randn(batch, tokens // reduction, 4)
    made = chosen.scatter(x, mixed)
    importance = torch.softmax(chooser.router(x)[..., 0], 1)
    for image in range(batch):
        rows = chosen.index[image].tolist()
        assert len(set(rows)) == tokens // reduction
        left = set(range(tokens)) - set(rows)
        assert min(importance[image, rows]) >= max([importance[image, t] for t in left], default=0.0) - 1e-7
        for t in left:
            assert torch.allclose(made[image, t], x[image, t] * (1 + importance[image, t]))
        for place, t in enumerate(rows):
            assert torch.allclose(made[image, t], x[image, t] + importance[image, t] * mixed[image, place], atol=1e-6)
    assert torch.equal(chosen.gather(x)[0, 0], x[0, chosen.index[0, 0]])


def test_noise_moves_the_choice_while_training_only_and_is_not_in_the_weights() -> None:
    chooser, x = selector(scale=3.0), torch.randn(1, 64, 4)
    still = [chooser(x).index for _ in range(3)]
    assert all(torch.equal(index, still[0]) for index in still)
    chooser.train()
    noisy = [chooser(x) for _ in range(3)]
    assert len({tuple(chosen.index[0].tolist()) for chosen in noisy}) == 3
    assert all(torch.equal(chosen.importance, chooser.eval()(x).importance) for chosen in noisy)


def test_the_router_learns_through_the_weights_alone() -> None:
    chooser, x = selector(), torch.randn(2, 16, 4)
    chosen = chooser.train()(x)
    assert not chosen.index.requires_grad
    chosen.scatter(x, torch.randn(2, 4, 4)).square().sum().backward()
    assert chooser.router.weight.grad is not None and chooser.router.weight.grad.abs().sum() > 0


def test_half_precision_has_its_softmax_in_float() -> None:
    chosen = selector().half()(torch.randn(1, 16, 4).half())
    assert chosen.importance.dtype == torch.float32
    assert chosen.scatter(torch.randn(1, 16, 4).half(), torch.randn(1, 4, 4).half()).dtype == torch.half
