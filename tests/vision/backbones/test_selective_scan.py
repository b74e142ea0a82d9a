"""The tiled and the native scan against the definition, in values and gradients, in both directions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headway.core.errors import BadInput
from headway.core.threads import on_threads
from headway.kernels import cpu
from headway.vision.backbones.selective_scan import causal_filter, selective_scan, selective_scan_reference
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
    given = [value.double() for value in inputs(4096, width=8, state=16, batch=1)]
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


def whole(given: list[Tensor], added: Tensor, gate: Tensor, reverse: bool) -> Tensor:
    """All that passes with a scan, in float64; `dt` before its softplus."""
    u, dt, a, b, c, d = (value.double() for value in given)
    y = selective_scan_reference(u, F.softplus(dt), a, b, c, d, reverse=reverse)
    return (y + added.double()) * F.silu(gate.double())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 100), st.integers(1, 40), st.integers(1, 20), st.integers(1, 3), st.booleans(),
    st.sampled_from(cpu.levels()), st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_the_native_scan_is_the_definition_on_every_level(
    tokens: int, width: int, state: int, batch: int, reverse: bool, level: str, threads: int, seed: int
) -> None:
    given = inputs(tokens, width, state, batch, seed)
    given[1] = 20.0 * given[1].log()  # steps from almost none to almost ten
    random = torch.Generator().manual_seed(seed)
    both = torch.randn(batch, tokens, 2 * width, generator=random)
    added, gate = both.chunk(2, -1)  # rows that do not follow one another
    options = {"added": added, "gate": gate, "softplus": True, "reverse": reverse}
    with cpu.at_level(level), on_threads(threads):
        found = selective_scan(*given, **options)  # type: ignore[arg-type]
        plain = selective_scan(*given[:1], F.softplus(given[1]), *given[2:], reverse=reverse)
    assert relative_error(whole(given, added, gate, reverse), found) <= 2e-6
    assert torch.equal(found, selective_scan(*given, **options))  # type: ignore[arg-type]
    assert relative_error(whole(given, added, gate, reverse), (plain + added) * F.silu(gate)) <= 2e-6


@pytest.mark.parametrize("reverse", [False, True])
def test_what_learns_passes_by_the_native_scan_and_gives_the_same(reverse: bool) -> None:
    given = inputs(40)
    added, gate = torch.randn(2, 2, 40, 6)
    learning = [value.clone().requires_grad_() for value in (*given, added, gate)]
    *others, added_, gate_ = learning
    found = selective_scan(*others, added=added_, gate=gate_, softplus=True, reverse=reverse)
    assert relative_error(whole(given, added, gate, reverse), found) <= 2e-6
    assert all(value is not None for value in torch.autograd.grad(found.sum(), learning))


def test_numbers_that_are_none_stay_so_and_others_do_not_become_them() -> None:
    given = inputs(70, width=20)
    given[0][0, 30, 3] = torch.nan
    found = selective_scan(*given)
    assert torch.isnan(found[0, 30:, 3]).all()
    found[0, 30:, 3] = 0.0
    assert torch.isfinite(found).all()
    u, dt, a, b, c, d = inputs(70, width=20)
    steps = torch.full_like(dt, 1e4)  # softplus of much is as much, of little nothing
    assert torch.isfinite(selective_scan(u, steps, a, b, c, d, softplus=True)).all()
    assert torch.allclose(selective_scan(u, -steps, a, b, c, d, softplus=True), u * d)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 140), st.integers(1, 40), st.integers(1, 6), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(cpu.levels()),
)  # fmt: skip
def test_the_native_filter_is_the_convolution_on_every_level(
    tokens: int, width: int, taps: int, silu: bool, reverse: bool, biased: bool, level: str
) -> None:
    random = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, tokens, width + 3, generator=random)[:, :, 3:]
    weight, bias = torch.randn(width, taps, generator=random), torch.randn(width, generator=random) if biased else None
    x64 = x.double().flip(1) if reverse else x.double()
    exact = F.conv1d(
        F.pad(x64.mT, (taps - 1, 0)), weight.double()[:, None], None if bias is None else bias.double(), groups=width
    ).mT
    exact = F.silu(exact) if silu else exact
    exact = exact.flip(1) if reverse else exact
    with cpu.at_level(level):
        found = causal_filter(x, weight, bias, silu=silu, reverse=reverse)
    assert relative_error(exact, found) <= 2e-6
    assert torch.equal(found, causal_filter(x, weight, bias, silu=silu, reverse=reverse))
    learning = causal_filter(x, weight.clone().requires_grad_(), bias, silu=silu, reverse=reverse)
    assert relative_error(exact, learning.detach()) <= 2e-6
