"""The tiled scan against the definition, in values and gradients, in both directions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headway.core.errors import BadInput
from headway.vision.backbones.selective_scan import selective_scan, selective_scan_reference
from headway.vision.fold import relative_error


def inputs(tokens: int, width: int = 6, state: int = 4, batch: int = 2, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    steps = torch.rand(batch, tokens, width, generator=random) * 0.1
    decay = -torch.arange(1.0, state + 1).repeat(width, 1)
    return [
        normal(batch, tokens, width), steps, decay, normal(batch, tokens, state), normal(batch, tokens, state),
        normal(width),
    ]  # fmt: skip


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 257, 4096])
def test_the_tiled_scan_is_the_sequential_one(tokens: int, reverse: bool) -> None:
    given = inputs(tokens, width=8, state=16, batch=1)
    exact = selective_scan_reference(*given, reverse=reverse)
    assert relative_error(exact, selective_scan(*given, reverse=reverse)) <= 1e-5
    assert relative_error(exact, selective_scan(*given, reverse=reverse, tile=61)) <= 1e-5


def test_reversed_it_is_the_scan_of_the_flipped_sequence() -> None:
    u, dt, a, b, c, d = inputs(50)
    flipped = selective_scan(u.flip(1), dt.flip(1), a, b.flip(1), c.flip(1), d).flip(1)
    assert torch.allclose(selective_scan(u, dt, a, b, c, d, reverse=True), flipped, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 23), st.integers(1, 30), st.booleans(), st.integers(0, 99))
def test_gradients_are_those_of_the_definition(tokens: int, tile: int, reverse: bool, seed: int) -> None:
    ours = [value.double().requires_grad_() for value in inputs(tokens, 3, 2, seed=seed)]
    theirs = [value.detach().clone().requires_grad_() for value in ours]
    weight = torch.randn(2, tokens, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = torch.autograd.grad((selective_scan(*ours, reverse=reverse, tile=tile) * weight).sum(), ours)
    exact = torch.autograd.grad((selective_scan_reference(*theirs, reverse=reverse) * weight).sum(), theirs)
    for ours_, exact_ in zip(found, exact, strict=True):
        assert torch.allclose(ours_, exact_, rtol=1e-9, atol=1e-11)


def test_states_of_the_whole_sequence_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(4096, width=8, state=16, batch=1)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.dim() == 4:
                largest = max(largest, found.numel())
            return found

    with Watch():
        selective_scan(*given, tile=64)
    assert largest == 64 * 8 * 16


def test_decay_that_underflows_is_zero_and_half_precision_keeps_its_state_in_float() -> None:
    u, dt, a, b, c, d = inputs(300)
    far = selective_scan(u, dt * 1e5, a, b, c, d)
    assert torch.isfinite(far).all()
    halves = [value.half() for value in (u, dt, a, b, c, d)]
    found = selective_scan(*halves)
    assert found.dtype == torch.half
    exact = selective_scan_reference(*(value.float() for value in halves))
    assert relative_error(exact, found.float()) < 1e-3


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    u, dt, a, b, c, d = inputs(5)
    with pytest.raises(BadInput, match="was given b of"):
        selective_scan(u, dt, a, b[:, :4], c, d)
    assert selective_scan(*(value.to("meta") for value in (u, dt, a, b, c, d))).shape == u.shape


def test_an_exporter_is_refused_since_it_would_unroll_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with pytest.raises(BadInput, match="a selective scan cannot be exported"):
        selective_scan(*inputs(5))
