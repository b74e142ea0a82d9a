"""Folded networks give the outputs of the unfolded ones, and what cannot be folded is left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.fold import (
    affine_then,
    averaged,
    fold,
    joined,
    plus_identity,
    randomise_norms,
    relative_error,
    scale_shift,
    then_affine,
    then_pointwise,
)

TOLERANCE = 1e-12
CHANNELS = st.sampled_from([4, 6, 8])
FEW = settings(max_examples=15, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def double() -> Iterator[None]:
    """In float64 a wrong fold cannot hide behind rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _norm(channels: int) -> nn.BatchNorm2d:
    return randomise_norms(nn.BatchNorm2d(channels)).eval()  # type: ignore[return-value]


@FEW
@given(CHANNELS, CHANNELS, st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_a_norm_behind_a_convolution(a: int, b: int, kernel: int, stride: int, bias: bool, grouped: bool) -> None:
    conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=2 if grouped else 1, bias=bias)
    norm, x = _norm(b), torch.randn(2, a, 7, 5)
    assert relative_error(norm(conv(x)), then_affine(conv, *scale_shift(norm))(x)) < TOLERANCE


@FEW
@given(CHANNELS, CHANNELS, st.booleans())
def test_a_norm_before_a_1x1_convolution_and_before_a_linear_layer(a: int, b: int, bias: bool) -> None:
    conv, norm, x = nn.Conv2d(a, b, 1, bias=bias), _norm(a), torch.randn(2, a, 7, 5)
    assert relative_error(conv(norm(x)), affine_then(conv, *scale_shift(norm))(x)) < TOLERANCE
    linear = nn.Linear(a, b, bias=bias)
    pooled = norm(x).mean((2, 3))
    assert relative_error(linear(pooled), affine_then(linear, *scale_shift(norm))(x.mean((2, 3)))) < TOLERANCE


@FEW
@given(CHANNELS, CHANNELS, CHANNELS, st.sampled_from([1, 3]))
def test_a_1x1_convolution_behind_another(a: int, b: int, c: int, kernel: int) -> None:
    first, second, x = nn.Conv2d(a, b, kernel, padding=kernel // 2), nn.Conv2d(b, c, 1), torch.randn(2, a, 6, 6)
    assert relative_error(second(first(x)), then_pointwise(first, second)(x)) < TOLERANCE
    linear, behind, y = nn.Linear(a, b), nn.Linear(b, c, bias=False), torch.randn(3, a)
    assert relative_error(behind(linear(y)), then_pointwise(linear, behind)(y)) < TOLERANCE


@FEW
@given(CHANNELS, st.sampled_from([1, 3, 5]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]))
def test_an_identity_beside_a_convolution(channels: int, kernel: int, groups: int, dilation: int) -> None:
    groups = groups if channels % groups == 0 else channels
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, channels, kernel, 1, padding, dilation, groups)
    x = torch.randn(2, channels, 7, 6)
    assert relative_error(conv(x) + x, plus_identity(conv)(x)) < TOLERANCE


def test_layers_side_by_side_and_their_mean() -> None:
    a, b, x = nn.Linear(5, 7), nn.Linear(5, 3, bias=False), torch.randn(4, 5)
    assert torch.allclose(joined([a, b])(x), torch.cat([a(x), b(x)], 1), atol=1e-6)
    c = nn.Linear(5, 7)
    assert torch.allclose(averaged(a, c)(x), (a(x) + c(x)) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 2, 1, 1)],
    ids=["strided", "wider", "unpadded", "even"],
)
def test_no_identity_goes_into_a_convolution_that_changes_the_shape(conv: nn.Conv2d) -> None:
    with pytest.raises(BadInput, match="changes the shape"):
        plus_identity(conv)


def test_no_norm_goes_into_a_padded_convolution_behind_it_nor_one_without_statistics() -> None:
    with pytest.raises(BadInput, match="only 1x1"):
        affine_then(nn.Conv2d(4, 4, 3, padding=1), *scale_shift(_norm(4)))
    with pytest.raises(BadInput, match="without running statistics"):
        scale_shift(nn.BatchNorm2d(4, track_running_stats=False))


class Foreign(nn.Module):
    """A network that knows nothing of folding: three of its seven norms must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.twice, self.twice_norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.shared, self.shared_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.before, self.pointwise = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.padded_norm, self.padded = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head_norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)
        self.both, self.both_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.both_behind = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        y = self.twice(x)
        x = self.twice_norm(y) + y  # read by two
        x = x + self.shared_norm(self.shared(self.shared_norm(self.shared(x))))  # called twice
        x = self.pointwise(self.before(x)).relu()
        x = self.padded(self.padded_norm(x)).relu()
        x = self.both_behind(self.both_norm(self.both(x)))
        return self.head(self.head_norm(x.mean((2, 3))))


def test_norms_of_any_network_are_found_by_running_it() -> None:
    net = randomise_norms(Foreign()).eval()
    x = torch.randn(2, 3, 9, 11)
    made = fold(net, x)
    left = {name for name, child in made.named_modules() if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d))}
    assert left == {"twice_norm", "shared_norm", "padded_norm"}
    assert relative_error(net(x), made(x)) < TOLERANCE
    assert len([child for child in net.modules() if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d))]) == 7


class Scaled(nn.Module):
    """Has a shorter form once its children have theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.linear(x)

    def folded(self) -> nn.Module:
        return then_affine(self.linear, self.gamma)


def test_modules_that_know_a_shorter_form_are_replaced_once_wherever_they_are() -> None:
    shared = Scaled()
    net = randomise_norms(nn.Sequential(shared, nn.ReLU(), shared, nn.ModuleDict({"a": Scaled()})["a"]))
    x = torch.randn(3, 4)
    made = fold(net)
    assert made[0] is made[2] and isinstance(made[0], nn.Linear) and isinstance(net[0], Scaled)
    assert relative_error(net(x), made(x)) < TOLERANCE
    assert not made.training and not any(value.requires_grad for value in made.parameters())


def test_float16_values_are_folded_with_the_accuracy_of_float64() -> None:
    conv, norm = nn.Conv2d(8, 8, 3).half(), _norm(8).half()
    scale, shift = scale_shift(norm)
    exact = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    made = then_affine(conv, scale, shift)
    assert made.weight.dtype == torch.float16 and torch.equal(made.weight, exact.half())
