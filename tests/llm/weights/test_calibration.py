"""Calibration: H and G against sums written out, for linear and convolution sites, and what they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.model import Site
from headway.core.module_model import ModuleModel
from headway.core.progress import Progress
from headway.core.system import Context
from headway.llm.weights import calibration
from headway.llm.weights.calibration import CAP, PLAIN, collect, gradient_moments, hessians
from headway.training.sampled_loss import sampled_loss


class Net(nn.Module):
    """Two siblings on one tensor, a pointwise convolution with a stride, an embedding in front."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(9, 12)
        self.q = nn.Linear(12, 6)
        self.k = nn.Linear(12, 4, bias=False)
        self.point = nn.Conv2d(10, 5, 1, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        both = torch.cat([self.q(x), self.k(x)], -1)
        image = both.movedim(-1, 1)[..., None].expand(-1, -1, -1, 2)
        return self.head(self.act(self.point(image)).mean(-1).movedim(1, -1))


class Subject:
    """As much of a `Model` as calibration asks for."""

    def __init__(self, module: nn.Module, names: Sequence[str], task: str = "classification") -> None:
        self._module, self._names, self.task = module.eval(), names, task

    def module(self) -> nn.Module:
        return self._module

    def fingerprint(self) -> str:
        return "net"

    def sites(self) -> list[Site]:
        return [
            Site(name, layer.weight.shape[0], layer.weight.shape[1])
            for name, layer in self._module.named_modules()
            if name in self._names
        ]


def context(inputs: Sequence[tuple[Any, ...]], cache: StepCache | None = None) -> Any:
    return SimpleNamespace(calibration=inputs, cache=cache, seed=5, progress=Progress(), original=None, held={})


NAMES = ("q", "k", "point", "head")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 products, whatever this machine is fast at."""
    from contextlib import nullcontext

    monkeypatch.setattr(calibration, "fast_products", nullcontext)


def written_out(net: Net, inputs: Sequence[Tensor]) -> Mapping[str, Any]:
    """x and dloss/dy of every call, by autograd on the outputs themselves."""
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    generator = torch.Generator().manual_seed(5)
    for ids in inputs:
        x = net.embed(ids).detach()
        q, k = (layer(x).detach().requires_grad_(True) for layer in (net.q, net.k))
        image = torch.cat([q, k], -1).movedim(-1, 1)[..., None].expand(-1, -1, -1, 2)
        point = net.point(image)
        point.retain_grad()
        pooled = torch.relu(point).mean(-1).movedim(1, -1)
        logits = net.head(pooled)
        logits.retain_grad()
        sampled_loss(logits, "classification", generator)[0].backward()
        strided = image[..., ::2, ::2]
        for name, given, out in (
            ("q", x, q),
            ("k", x, k),
            ("point", strided.movedim(1, -1), point),
            ("head", pooled, logits),
        ):
            gradient = out.grad.movedim(1, -1) if name == "point" else out.grad
            rows = given.detach().reshape(-1, given.shape[-1]).double().numpy()
            seen.setdefault(name, []).append((rows, gradient.reshape(len(rows), -1).double().numpy()))
    return seen


def expected_h(calls: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """H of sites that share inputs, by the definition in the module's docstring."""
    width = calls[0][0][0].shape[1]
    mixed, fisher, tokens = np.zeros((width, width)), 0.0, 0
    outputs = sum(call[0][1].shape[1] for call in calls)
    for number in range(len(calls[0])):
        x = calls[0][number][0]
        a = sum((call[number][1] ** 2).sum(1) for call in calls) / outputs
        norms = (x**2).sum(1)
        c = np.minimum(1, CAP * np.sort(norms)[(len(norms) - 1) // 2] / np.maximum(norms, 1e-30))
        p, f = (x * c[:, None]).T @ x, (x * a[:, None]).T @ x
        mixed += len(x) * (PLAIN * p / p.trace() + (1 - PLAIN) * f / f.trace())
        fisher += f.trace()
        tokens += len(x)
    return fisher / tokens * mixed / tokens


@pytest.mark.usefixtures("exact")
def test_h_and_g_are_what_their_definition_says() -> None:
    net = Net().eval()
    inputs = [torch.randint(0, 9, (2, 8)) for _ in range(3)]
    found = collect(Subject(net, NAMES), context([(ids,) for ids in inputs]))
    seen = written_out(net, inputs)
    assert {key for key in found if key.startswith("H ")} == {"H q", "H point", "H head"}
    assert bytes(found["owner k"]).decode() == "q"
    for owner, members in (("q", ("q", "k")), ("point", ("point",)), ("head", ("head",))):
        h = expected_h([seen[name] for name in members])
        np.testing.assert_allclose(found[f"H {owner}"], h, rtol=1e-3, atol=1e-5 * h.trace())
        np.testing.assert_array_equal(found[f"H {owner}"], found[f"H {owner}"].T)
        total = np.mean(np.concatenate([g for name in members for _, g in seen[name]], axis=None) ** 2)
        for name in members:
            moment = np.concatenate([g for _, g in seen[name]]) ** 2
            np.testing.assert_allclose(found[f"G {name}"], moment.mean(0) / total, rtol=1e-3, atol=1e-6)


def test_tokens_of_enormous_norm_do_not_rule() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    x = torch.randn(64, 8)
    x[0] *= 1e4
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(8))
        net[0].bias.zero_()
    h = plain_h(net, x)
    assert np.linalg.eigvalsh(h)[-1] / h.trace() < 0.5
    uncapped = (x.T @ x).numpy()
    assert np.linalg.eigvalsh(uncapped)[-1] / uncapped.trace() > 0.99


def plain_h(net: nn.Module, x: Tensor) -> np.ndarray:
    """H where no gradient comes through: P alone."""
    from unittest.mock import patch

    with patch.object(calibration, "sampled_loss", lambda *_: (torch.zeros(()), 1)):
        return collect(Subject(net, ["0", "1"]), context([(x[None],)]))["H 0"]


def test_labels_are_drawn_as_the_model_says() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().repeat(30_000, 1).requires_grad_(True)
    sampled_loss(logits, "language", torch.Generator().manual_seed(0))[0].backward()
    drawn = (logits.grad - logits.detach().softmax(-1)).mean(0)
    torch.testing.assert_close(-drawn, torch.tensor([0.1, 0.6, 0.3]), atol=0.01, rtol=0)


def test_sequences_of_one_batch_count_as_inputs_of_their_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    ids = torch.randint(0, 9, (3, 16))
    together = collect(Subject(net, ["1"], "language"), context([(ids,)]))
    apart = collect(Subject(net, ["1"], "language"), context([(row[None],) for row in ids]))
    np.testing.assert_array_equal(together["H 1"], apart["H 1"])


def test_the_module_is_left_as_it_was() -> None:
    net = Net().eval()
    net.k.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    collect(Subject(net, NAMES), context([(torch.randint(0, 9, (2, 8)),)]))
    assert [p.requires_grad for p in (net.q.weight, net.k.weight)] == [True, False]
    assert all(p.grad is None for p in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_results_come_from_the_cache_and_siblings_share_one_array(tmp_path: Any) -> None:
    net = Net().eval()
    subject = Subject(net, NAMES)
    cache = StepCache(tmp_path)
    given = context([(torch.randint(0, 9, (2, 8)),)], cache)
    first = hessians(subject, given, subject.sites())
    again = hessians(subject, context(given.calibration, cache), subject.sites())
    assert first["q"] is first["k"]
    assert again["q"] is again["k"]
    assert set(gradient_moments(subject, given)) == set(NAMES)
    assert (cache.misses, cache.hits) == (1, 1)  # the third came from what `given` holds
    for name in NAMES:
        np.testing.assert_array_equal(first[name], again[name])


def test_the_predicted_loss_orders_real_losses() -> None:
    """Noise of one size in different layers: predicted and measured KL agree in order of magnitude and rank."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5)).eval()
    with torch.no_grad():
        net[2].weight.mul_(3.0)
        net[4].weight.mul_(4.0)
    inputs = [torch.randn(64, 16) for _ in range(8)]
    found = collect(Subject(net, ["0", "2", "4"]), context([(x,) for x in inputs]))
    rng = np.random.default_rng(1)
    held = torch.randn(4096, 16)
    with torch.no_grad():
        truth = net(held).log_softmax(-1)
        predicted, measured = [], []
        for name in ("0", "2", "4"):
            layer = net.get_submodule(name)
            original = layer.weight.clone()
            for size in (0.01, 0.03):
                error = size * rng.normal(size=original.shape).astype(np.float32)
                h, g = found[f"H {name}"], found[f"G {name}"]
                predicted.append(0.5 * float(g @ np.einsum("oi,ij,oj->o", error, h, error)))
                layer.weight.copy_(original + torch.from_numpy(error))
                kl = (truth.exp() * (truth - net(held).log_softmax(-1))).sum(-1).mean()
                measured.append(float(kl))
                layer.weight.copy_(original)
    ratio = np.array(measured) / np.array(predicted)
    assert (ratio > 0.4).all()
    assert (ratio < 2.5).all()
    assert np.array_equal(np.argsort(predicted), np.argsort(measured))


def test_a_recipe_calibrates_on_the_model_before_its_first_step() -> None:
    torch.manual_seed(0)
    before, now = (Subject(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), ["0", "1"]) for _ in range(2))
    given = context([(torch.randn(16, 8),)])
    own = hessians(before, given, before.sites())["1"]
    given.original = before
    np.testing.assert_array_equal(hessians(now, given, now.sites())["1"], own)


def test_without_inputs_or_with_unreached_sites_it_says_so() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    net.unused = nn.Linear(8, 8)
    net.forward = lambda x: net[1](net[0](x))  # type: ignore[method-assign]
    subject = Subject(net, ["0", "unused"])
    with pytest.raises(BadInput, match="no calibration inputs"):
        hessians(subject, context([]), subject.sites())
    with pytest.raises(BadInput, match="never reach unused"):
        hessians(subject, context([(torch.randn(4, 8),)]), subject.sites())


@pytest.mark.parametrize(("quiet", "timed"), [(True, 1), (False, 2)])
def test_what_an_input_takes_is_kept_where_nothing_else_runs(
    quiet: bool, timed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []
    monkeypatch.setattr(calibration, "is_quiet", lambda machine: quiet)
    real = calibration.collect
    monkeypatch.setattr(calibration, "collect", lambda model, context: times.append(1) or real(model, context))
    target: Any = SimpleNamespace(fingerprint="here")
    made = Context(target, [(torch.randn(4, 64),)] * 3, StepCache(tmp_path))
    net = ModuleModel(nn.Sequential(nn.Linear(64, 8)), torch.randn(4, 64), task="classification")
    assert all(calibration.seconds_of_input(net, made) > 0 for _ in range(2))
    assert len(times) == timed


def test_calibrations_by_other_products_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ModuleModel(nn.Sequential(nn.Linear(64, 8)), torch.randn(4, 64), task="classification")
    target: Any = None
    keys = []
    for has in (True, False):
        monkeypatch.setattr(calibration, "_has_bf16", lambda has=has: has)
        keys.append(calibration.key_of(net, Context(target, [(torch.ones(4, 64),)])))
    assert keys[0] != keys[1]
