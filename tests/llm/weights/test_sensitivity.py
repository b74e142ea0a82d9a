"""Sensitivity: the curvature along an error against the divergence that the error causes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.system import Context
from headway.llm.weights import calibration, sensitivity
from headway.llm.weights.sensitivity import curvature, gradient_moments, shrunk


class Pooled(nn.Module):
    """Many rows of one item meet in a mean: what H and G take one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(8, 16, 1)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.tanh(self.point(image)).mean((-1, -2))
        return 3 * self.head(torch.tanh(self.mix(x)))


def model() -> ModuleModel:
    torch.manual_seed(2)
    return ModuleModel(Pooled(), images(2), task="classification")


def images(count: int) -> Tensor:
    return torch.randn(count, 8, 5, 5) + torch.randn(count, 8, 1, 1)


def context(inputs: int, cache: StepCache | None = None) -> Context:
    torch.manual_seed(4)
    given: Any = [(images(32),) for _ in range(inputs)]
    return Context(target=None, calibration=given, cache=cache, threads=1)  # type: ignore[arg-type]


def divergence(subject: ModuleModel, site: str, error: np.ndarray, given: Tensor) -> float:
    """Mean KL of the model whose site has that error from the model itself."""
    module = subject.module()
    layer = module.get_submodule(site)
    with torch.no_grad():
        truth = module(given).double().log_softmax(-1)
        layer.weight.add_(torch.from_numpy(error).reshape(layer.weight.shape))
        changed = module(given).double().log_softmax(-1)
    return float((truth.exp() * (truth - changed)).sum(-1).mean())


def errors_of(subject: ModuleModel, size: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        site.name: size * rng.normal(size=(site.out_features, site.in_features)).astype(np.float32)
        for site in subject.sites()
    }


def test_curvature_is_the_divergence_of_a_small_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "SAMPLES", 4096)
    subject, given = model(), context(128)
    errors = errors_of(subject, 0.01)
    felt, samples = curvature(subject, given, errors)
    assert samples == 4096
    for name, error in errors.items():
        assert felt[name] == pytest.approx(divergence(subject, name, error, images(4096)), rel=0.2)


def test_corrected_moments_predict_what_one_by_one_they_do_not() -> None:
    subject, given = model(), context(8)
    raw, corrected = calibration.gradient_moments(subject, given), gradient_moments(subject, given)
    h = calibration.hessians(subject, given, subject.sites())
    ratios = {}
    for name, error in errors_of(subject, 0.05).items():
        spread = np.einsum("oi,oi->o", error @ h[name], error)
        truth = divergence(subject, name, error, images(2048))
        ratios[name] = [0.5 * float(g[name] @ spread) / truth for g in (raw, corrected)]
    assert ratios["point"][0] < 0.2 or ratios["point"][0] > 5
    assert all(0.4 < after < 2.5 for _, after in ratios.values())


def test_sites_of_one_role_lend_each_other_strength() -> None:
    estimates = {"layers.0.q": 1.0, "layers.1.q": 1.0, "head": 2.0, "layers.0.k": 0.0}
    felt = {"layers.0.q": 4.0, "layers.1.q": 0.0, "head": 1.0, "layers.0.k": 0.0}
    few, many = shrunk(estimates, felt, 0), shrunk(estimates, felt, 10**9)
    assert few == {"layers.0.q": 2.0, "layers.1.q": 2.0, "head": 0.5, "layers.0.k": 1.0}
    assert many["layers.0.q"] == pytest.approx(4.0)
    assert many["layers.1.q"] == pytest.approx(0.0, abs=1e-6)


def test_the_cache_keeps_it(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    subject, given = model(), context(2, cache)
    first = gradient_moments(subject, given)
    made = cache.misses
    again = gradient_moments(subject, given)
    assert cache.misses == made
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])


def test_token_sequences_are_cut_into_samples() -> None:
    tokens = torch.arange(1024).reshape(2, 512)
    parts = sensitivity._samples([(tokens,), (tokens,)], "language")
    assert sum(batch for _, batch in parts) == 16
    assert torch.equal(torch.cat([part[0] for part, _ in parts[:2]]).reshape(-1), tokens.reshape(-1))
    assert sensitivity._samples([(tokens[:, :100],)], "language")[0][1] == 2
    few = sensitivity._samples([(torch.zeros(20, 3),)] * 9, "module")
    assert [batch for _, batch in few] == [20] * -(-sensitivity.SAMPLES // 20)


class InPlace(nn.Module):
    """Writes over what its gradient needs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(-self.a(x))
        y += 1
        return self.b(1 / y)


class ThroughNumpy(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.from_numpy(self.a(x).numpy() * 2))


class Chosen(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).argmax(-1)


@pytest.mark.parametrize("net", [InPlace, ThroughNumpy, Chosen])
def test_a_network_without_gradients_is_calibrated_on_what_its_products_see(net: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, inputs = ModuleModel(net(), torch.randn(2, 8)), torch.randn(16, 8)
    for _ in range(2):  # the second time from the cache
        given: Any = Context(target=None, calibration=[(inputs,)], cache=StepCache(tmp_path), threads=1)  # type: ignore[arg-type]
        found = gradient_moments(made, given)
        assert {name: set(g.tolist()) for name, g in found.items()} == {"a": {1.0}, "b": {1.0}}
        seen = calibration.hessians(made, given, made.sites()[:1])["a"]
        norms = inputs.square().sum(1)
        capped = (calibration.CAP * norms.median() / norms).clamp(max=1)
        np.testing.assert_allclose(seen, ((inputs * capped[:, None]).T @ inputs / len(inputs)).numpy(), rtol=1e-4)
        assert len(given.notes) == 1 and given.notes[0].startswith("calibrated without gradients")


def test_a_calibration_input_that_does_not_fit_is_named_in_one_line() -> None:
    given: Any = Context(target=None, calibration=[(torch.randn(2, 9),)], threads=1)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"does not run on a calibration input: .*; give inputs that fit"):
        gradient_moments(ModuleModel(InPlace(), torch.randn(2, 8)), given)


def test_a_convolution_of_one_image_without_a_batch_is_calibrated_as_a_batch_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "PLAIN", 1.0)  # the loss of one image without a batch is another
    torch.manual_seed(0)
    net, image = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 1)), torch.randn(4, 7, 7)
    found = []
    for sample in (image, image[None]):
        made = ModuleModel(net, sample)
        given: Any = Context(target=None, calibration=[(sample,)], threads=1)  # type: ignore[arg-type]
        found.append(calibration.hessians(made, given, made.sites()))
        assert set(gradient_moments(made, given)) == {"0", "2"} and not given.notes
    plain = [h["0"] / np.trace(h["0"]) for h in found]
    np.testing.assert_allclose(plain[0], plain[1], atol=1e-5)


def test_a_network_of_another_type_is_calibrated_with_packed_layers_inside() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).to(torch.bfloat16)
    made = ModuleModel(net, torch.randn(2, 8, dtype=torch.bfloat16))
    packed = made.with_weights({"0": made.weight("0")})
    given: Any = Context(target=None, calibration=[made.sample], threads=1)  # type: ignore[arg-type]
    assert set(gradient_moments(packed, given)) == {"0", "2"} and not given.notes
