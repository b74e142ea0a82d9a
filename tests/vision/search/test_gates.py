"""Binary gates: every way to their gradients is the enumerated one, and one path's memory is enough."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from searching import images
from torch import nn

from headway.vision.search.blocks import ConvSpec, HeadSpec
from headway.vision.search.gates import GateStep, keep_unsampled, regularised, straight_through
from headway.vision.search.layerwise import Layer, Layerwise, d400
from headway.vision.search.live_bytes import peak_bytes
from headway.vision.search.proxylessnas import ArchNet
from headway.vision.search.proxylessnas_nets import OPS
from headway.vision.search.supernet import SuperNet, one_path, path_accuracy


def small() -> Layerwise:
    layers = (Layer(8, 8, 1, (*OPS, "skip")), Layer(8, 12, 2, OPS), Layer(12, 12, 1, (*OPS, "skip")))
    return Layerwise("small", ConvSpec(3, 8, 3), layers, HeadSpec(12, 5), 16)


def arch_gradients(net: ArchNet, mode: str, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)  # the same gates in every mode
    gates = GateStep(list(net.alphas), mode, [None] * 3)  # type: ignore[arg-type]
    loss = F.cross_entropy(net(x, gates.mix), y)
    found = torch.autograd.grad(loss, [*net.alphas, *gates.gates], allow_unused=True)
    return found


def test_recomputed_gate_gradients_are_those_of_all_paths() -> None:
    torch.manual_seed(0)
    net = ArchNet(small()).double().train()
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    for one, other in zip(*(arch_gradients(net, mode, x, y) for mode in ("full_v2", "full")), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-14) and bool(one.abs().sum() > 0)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


FACTORS = (0.3, -1.2, 2.0, 0.7)


def toy_gradient(alpha: nn.Parameter, mode: str) -> tuple[torch.Tensor, GateStep]:
    gates = GateStep([alpha], mode, [None])  # type: ignore[arg-type]
    out = gates.mix(0, nn.ModuleList(Scale(f) for f in FACTORS), torch.ones(1, dtype=torch.float64, requires_grad=True))
    return torch.autograd.grad(out.sum(), alpha)[0], gates


def expected(alpha: torch.Tensor) -> torch.Tensor:
    return (torch.softmax(alpha, 0) * torch.tensor(FACTORS, dtype=torch.float64)).sum()


def test_alphas_gradient_is_the_finite_difference_of_the_expectation() -> None:
    alpha = nn.Parameter(torch.tensor([0.2, -0.5, 0.9, 0.0], dtype=torch.float64))
    step = 1e-6 * torch.eye(4, dtype=torch.float64)
    numeric = torch.stack([(expected(alpha + d) - expected(alpha - d)) / 2e-6 for d in step]).detach()
    for mode in ("full", "full_v2"):
        assert torch.allclose(toy_gradient(alpha, mode)[0], numeric, rtol=1e-6)


def two_expectation(alpha: torch.Tensor) -> torch.Tensor:
    """The mean gradient of mode `two`: over ordered pairs drawn without replacement."""
    p = torch.softmax(alpha.detach(), 0)
    mean = torch.zeros_like(p)
    for i, j in itertools.permutations(range(len(p)), 2):
        pair = torch.softmax(alpha.detach()[[i, j]], 0)
        values = torch.tensor([FACTORS[i], FACTORS[j]], dtype=torch.float64)
        gradient = pair * (values - (pair * values).sum())
        mean[[i, j]] += p[i] * p[j] / (1 - p[i]) * gradient
    return mean


def test_two_sampled_paths_are_unbiased_up_to_their_sampling_rule() -> None:
    torch.manual_seed(0)
    alpha = nn.Parameter(torch.tensor([0.2, -0.5, 0.9, 0.0], dtype=torch.float64))
    drawn = torch.stack([toy_gradient(alpha, "two")[0] for _ in range(1000)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert bool(((drawn.mean(0) - two_expectation(alpha)).abs() < 3.5 * error).all())


def test_probabilities_of_what_was_not_drawn_stay() -> None:
    torch.manual_seed(0)
    alpha = nn.Parameter(torch.randn(6, dtype=torch.float64))
    before = alpha.detach().clone()
    with torch.no_grad():
        alpha[1] += 0.7
        alpha[4] -= 0.2
    keep_unsampled([alpha], [before], [[1, 4]])
    moved = (torch.softmax(alpha, 0) - torch.softmax(before, 0)).abs()
    assert bool((moved[[0, 2, 3, 5]] < 1e-12).all()) and float(moved[1].detach()) > 0.01


def test_a_sampled_skip_gives_its_layer_no_gradient() -> None:
    alpha = nn.Parameter(torch.tensor([-50.0, 50.0]))
    gates = GateStep([alpha], "full_v2", [1])
    assert gates.active == [1] and not gates.gates[0].requires_grad
    assert not gates.expected_cost([torch.tensor([3.0, 0.0])], 1.0).requires_grad


def test_weights_off_the_path_have_no_gradient_at_all() -> None:
    net = ArchNet(small())
    net(torch.randn(2, 3, 16, 16), one_path([0, 1, 2])).sum().backward()
    for layer, active in enumerate([0, 1, 2]):
        for index, op in enumerate(net.layers[layer]):  # type: ignore[arg-type]
            assert all((p.grad is not None) == (index == active) for p in op.parameters())


@pytest.mark.parametrize("kind", ["mul_log", "add_linear"])
def test_both_losses_grow_with_latency_and_mean_the_papers_formulas(kind: str) -> None:
    cost = torch.tensor(200.0, requires_grad=True)
    loss = regularised(torch.tensor(2.0), cost, 100.0, kind, alpha=0.2, beta=0.6, lambda_=0.1)
    assert float(torch.autograd.grad(loss, cost)[0]) > 0
    said = (
        2.0 + 0.1 if kind == "add_linear" else 0.2 * 2.0 * (torch.log(cost.detach()) / torch.tensor(100.0).log()) ** 0.6
    )
    assert float(loss.detach()) == pytest.approx(float(said))


def test_gates_hold_one_and_pass_the_probabilities_gradient() -> None:
    p = torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    gates = straight_through(p, 1)
    assert torch.equal(gates, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(
        torch.autograd.grad((gates * torch.tensor([1.0, 2.0, 3.0])).sum(), p)[0], torch.tensor([1.0, 2.0, 3.0])
    )


def test_recomputing_needs_the_memory_of_one_path_and_not_of_all() -> None:
    net = ArchNet(small())
    x, y = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    largest = [layer.ops.index("k7e6") for layer in net.macro.layers]
    with torch.no_grad():
        for alpha, index in zip(net.alphas, largest, strict=True):
            alpha[index] = 50.0  # the largest is what is sampled

    def step(mode: str) -> int:
        gates = GateStep(list(net.alphas), mode, [None] * 3)  # type: ignore[arg-type]
        assert gates.active == largest
        return peak_bytes(lambda: torch.autograd.grad(F.cross_entropy(net(x, gates.mix), y), list(net.alphas)))

    single = peak_bytes(lambda: F.cross_entropy(net(x, one_path(largest)), y).backward())
    assert step("full_v2") <= 1.15 * single
    assert step("full_v2") <= step("full") / 3


def test_a_path_is_judged_by_the_statistics_of_its_own_batches() -> None:
    torch.manual_seed(0)
    net = SuperNet(d400())
    split = images().valid
    indices = [0] * len(net.layers)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    judged = path_accuracy(net, indices, split)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):  # of other paths: they may not count
            norm.running_mean = torch.randn(norm.num_features)
            norm.running_var = torch.rand(norm.num_features) + 5.0
    assert path_accuracy(net, indices, split) == judged
