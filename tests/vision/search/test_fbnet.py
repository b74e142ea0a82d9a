"""FBNet's relaxation and search: one sample of noise for network and latency, turns of an epoch, a distribution out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from searching import subject
from torch import nn

from headway.core.errors import BadInput, Lacking
from headway.core.module_origin import build_family
from headway.vision.search.blocks import ConvSpec
from headway.vision.search.fbnet import (
    FbnetSettings,
    GumbelMixture,
    GumbelNet,
    check_memory,
    loss_of,
    sampled,
    searched,
    tau_of,
)
from headway.vision.search.layerwise import Layer, d400


def settings(**more: object) -> FbnetSettings:
    few = {"epochs": 4, "warmup_epochs": 1, "weight_steps": 3, "theta_steps": 2, "batch": 8}
    return FbnetSettings.parse({**few, **more}, "fbnet")


def test_network_and_latency_see_the_same_noise() -> None:
    torch.manual_seed(0)
    theta = nn.Parameter(torch.tensor([0.1, 0.7, -0.4], dtype=torch.float64))
    mixture = GumbelMixture([theta], 0.5)

    class Times(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    costs = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    ops = nn.ModuleList(Times(float(c)) for c in costs)
    out = mixture.mix(0, ops, torch.ones(1, dtype=torch.float64))
    assert float(out.detach()) == pytest.approx(float(mixture.cost([costs], 0.0).detach()))
    m = mixture.weights[0].detach()
    known = m * (costs - (m * costs).sum()) / 0.5
    assert torch.allclose(torch.autograd.grad(mixture.cost([costs], 3.0), theta)[0], known)


@pytest.mark.parametrize("tau", [5.0, 1.0, 0.1])
def test_the_argmax_of_the_mixture_is_drawn_from_the_softmax(tau: float) -> None:
    torch.manual_seed(0)
    theta = nn.Parameter(torch.tensor([0.5, -1.0, 0.2]).repeat(20_000, 1))
    chosen = GumbelMixture([theta], tau).weights[0].argmax(1)
    p = torch.softmax(theta.detach()[0], 0)
    share = torch.bincount(chosen, minlength=3) / 20_000
    assert bool(((share - p).abs() < 3.5 * (p * (1 - p) / 20_000).sqrt()).all())


def test_the_loss_is_a_power_of_the_logarithm_and_not_the_logarithm_of_a_power() -> None:
    cost = torch.tensor(1000.0)
    assert float(loss_of(torch.tensor(2.0), cost, 0.2, 0.6)) == pytest.approx(2.0 * 0.2 * float(torch.log(cost)) ** 0.6)


def test_temperature_falls_by_one_factor_an_epoch() -> None:
    taus = [tau_of(settings(epochs=5), epoch) for epoch in range(5)]
    assert taus[0] == 5.0 and taus[-1] == pytest.approx(0.2)
    assert all(b / a == pytest.approx(taus[1] / taus[0]) for a, b in pairwise(taus))


def test_theta_rests_while_weights_warm_up_and_a_search_is_done_once(tmp_path: Path) -> None:
    resting = searched(subject("fbnet", d400(), settings(), tmp_path), settings(warmup_epochs=3, theta_steps=1))
    assert all(float(theta.detach().abs().max()) <= 0.06 for theta in resting.thetas)  # one step of Adam
    about = subject("fbnet", d400(), settings(), tmp_path)
    first = searched(about, settings())
    misses = about.context.cache.misses
    again = searched(about, settings())
    assert about.context.cache.misses == misses
    assert all(torch.equal(a, b) for a, b in zip(first.thetas, again.thetas, strict=True))
    paths = sampled(first, 6, 0)
    assert len({tuple(path) for path in paths}) == 6 and paths == sampled(first, 6, 0)


def test_what_does_not_fit_is_refused_before_it_is_run() -> None:
    net = GumbelNet(d400())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(Lacking, match="proxylessnas"):
        check_memory(net, 1_000_000, 1 << 30)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_latency_without_a_logarithm_is_refused(tmp_path: Path) -> None:
    about = subject("fbnet", d400(), settings(), tmp_path)
    cheap = replace(about.table, costs=dict.fromkeys(about.table.costs, 1e-09))
    with pytest.raises(BadInput, match="logarithm"):
        searched(replace(about, table=cheap), settings())


def test_a_skip_that_changes_shape_is_a_convolution() -> None:
    macro = d400()
    made = macro.op(Layer(8, 12, 2, ("skip",)), "skip")
    assert isinstance(made, ConvSpec) and (made.kernel, made.stride) == (1, 2)
    assert macro.op(Layer(8, 8, 1, ("skip",)), "skip") is None


def test_the_released_nets_are_models() -> None:
    assert build_family("fbnet(variant=a, channels=1, classes=7, size=32)").run(torch.zeros(1, 1, 32, 32)).shape == (
        1,
        7,
    )
