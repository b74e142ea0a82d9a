"""ProxylessNAS: one path at a time, latency in the loss (Cai, Zhu & Han, ICLR 2019, arXiv:1812.00332).

Weights learn on training images along one sampled path; the probabilities of paths (`alpha`) learn on validation
images through binary gates (`gates`). The network found has the most probable operation of each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from headway.core.budget import Budget
from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.system import Found, SearchContext, Searcher
from headway.training.fit import Training, fit
from headway.vision.search import proxylessnas_nets as nets
from headway.vision.search.derive import candidates
from headway.vision.search.family import NetSettings, Subject, budget_latency, build, subject
from headway.vision.search.gates import GateStep, keep_unsampled, regularised
from headway.vision.search.layerwise import SKIP, Layerwise
from headway.vision.search.supernet import SuperNet, layer_costs, one_path, path_accuracy
from headway.vision.search.train import channels_last, seeded

SYSTEM = Card(
    slug="proxylessnas",
    title="ProxylessNAS: networks searched on the target task and machine",
    paper="Cai, Zhu & Han 2019, arXiv:1812.00332",
    kind="model",
    slot="network",
    summary="a CNN searched with the memory of one path, measured latency inside the loss",
    claim="Proxyless-Mobile 74.6% top-1 at 78 ms on a Pixel 1 (MobileNetV2: 72.0% at 75 ms)",
    extra="torch",
)

SAMPLED = 10
"""Networks of a step of REINFORCE."""


class ProxylessSettings(NetSettings):
    """Which network it is, and how a search goes. The defaults of the search are those of the space D400."""

    variant: Literal["mobile", "gpu", "cpu", "mobile-14"] = Field(
        "mobile", description="the released net, searched for a Pixel 1, a V100, a Xeon, or a Pixel 1 at width 1.4"
    )
    mode: Literal["two", "full_v2", "full", "reinforce"] = Field(
        "full_v2", description="how gates get gradients (paper: two; released code: full_v2), or REINFORCE"
    )
    steps: int = Field(1200, ge=2, description="steps of the weights; the paper's 160 epochs are 30,000 of batch 256")
    warmup: float = Field(0.4, ge=0, lt=1, description="share of the steps before the first of alpha; paper: 0.25")
    batch: int = Field(48, ge=2, description="images in a batch; paper: 256")
    lr: float = Field(0.15, gt=0, description="peak of the weights' learning rate; paper: 0.05, then 0.025")
    weight_decay: float = Field(1e-4, ge=0, description="of the weights; paper: 4e-5")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the weights' loss; paper: 0.1")
    arch_every: int = Field(2, ge=1, description="steps of the weights to one of alpha; paper: 5")
    arch_batch: int = Field(144, ge=2, description="validation images in a step of alpha; paper: as the weights' batch")
    skip_rests: bool = Field(
        False, description="no step of a layer's alpha where its skip was sampled, as in the released code: it absorbs"
    )
    arch_lr: float = Field(0.02, gt=0, description="of Adam on alpha, whose beta1 is 0; paper: 1e-3")
    reg: Literal["mul_log", "add_linear"] = Field("add_linear", description="how latency enters the loss; paper: both")
    alpha: float = Field(0.2, gt=0, description="factor of the loss under mul_log")
    beta: float = Field(0.3, ge=0, description="exponent of log latency under mul_log")
    lambda_: float = Field(0.3, ge=0, description="weight of relative latency under add_linear; paper: 0.1")
    tradeoff: float = Field(0.1, ge=0, description="exponent of latency in the reward of REINFORCE")


class ArchNet(SuperNet):
    """A supernet with its `alphas`, one vector a layer."""

    def __init__(self, macro: Layerwise) -> None:
        super().__init__(macro)
        self.alphas = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(len(layer.ops))) for layer in macro.layers)

    def weights(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("alphas.")]

    def probabilities(self) -> list[np.ndarray]:
        """Of the candidates, by layer."""
        return [torch.softmax(alpha.detach().double(), 0).numpy() for alpha in self.alphas]


@dataclass
class Reinforce:
    """The running baseline of the reward; `state_dict` as a part of a checkpoint."""

    baseline: float | None = None

    def state_dict(self) -> dict[str, float | None]:
        return {"baseline": self.baseline}

    def load_state_dict(self, held: Mapping[str, float | None]) -> None:
        self.baseline = held["baseline"]


class Proxyless(Searcher[ProxylessSettings]):
    card = SYSTEM
    settings = ProxylessSettings

    def build(self, settings: ProxylessSettings) -> ModuleModel:
        return build(SYSTEM.slug, settings, nets.SPACES, lambda: nets.published(settings.variant))

    def spaces(self) -> Mapping[str, str]:
        return nets.ABOUT

    def search(self, space: str, budget: Budget, settings: ProxylessSettings, context: SearchContext) -> Found:
        about = subject(SYSTEM.slug, nets.SPACES, space, settings, context)
        macro = about.macro
        assert isinstance(macro, Layerwise)
        limit = budget_latency(budget, about.latency(macro.extreme(False)), SYSTEM.slug)
        target = limit if limit is not None else about.latency(macro.extreme(True))
        net = searched(about, settings, target)
        costs, fixed = layer_costs(macro, about.table)
        ranked, ladder = candidates(net.probabilities(), [c.numpy() for c in costs], fixed, 1e6 * target)
        predicted = {
            macro.space.text(net.genotype(path)): {
                "latency_s": about.latency(net.genotype(path)),
                "accuracy": path_accuracy(net, path, about.images.valid),
            }
            for path in ladder
        }
        return about.finish([net.genotype(path) for path in ranked], budget, predicted)


def searched(about: Subject, settings: ProxylessSettings, target: float) -> ArchNet:
    """The supernet after the search, once: weights and alphas are kept by content. `target`: seconds."""
    macro = about.macro
    assert isinstance(macro, Layerwise)
    chosen = settings.model_dump(exclude={"variant", "space", "genotype"})
    checkpoint = about.checkpoint("supernet", settings=chosen, target=target)
    key = about.context.cache.key("proxylessnas", *about.key(), chosen, target, about.table.to_json())

    def run() -> dict[str, np.ndarray]:
        return {
            name: value.numpy() for name, value in _search(about, settings, target, checkpoint).state_dict().items()
        }

    held = about.context.cache.arrays(key, run)
    checkpoint.unlink(missing_ok=True)
    net = ArchNet(macro)
    shapes = net.state_dict()
    net.load_state_dict({name: torch.from_numpy(value).reshape(shapes[name].shape) for name, value in held.items()})
    return net


def _search(about: Subject, settings: ProxylessSettings, target: float, checkpoint: Path) -> ArchNet:
    macro, images, context = about.macro, about.images, about.context
    assert isinstance(macro, Layerwise)
    if settings.arch_batch > len(images.valid):
        raise BadInput(
            f"{len(images.valid)} validation images for batches of {settings.arch_batch}", "lower arch_batch"
        )
    net = seeded(lambda: ArchNet(macro), context.seed)
    assert isinstance(net, ArchNet)
    costs, fixed = layer_costs(macro, about.table)
    cheapest = fixed + sum(float(cost.min()) for cost in costs)
    if settings.reg == "mul_log" and min(1e6 * target, cheapest) <= 2.72:
        raise BadInput(f"latencies of {cheapest:.3g} us have no use in a logarithm", "write reg=add_linear")
    arch = torch.optim.Adam(net.alphas.parameters(), settings.arch_lr, betas=(0.0, 0.999))
    weights = torch.optim.SGD(
        net.weights(), settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(weights, settings.lr, total_steps=settings.steps, pct_start=0.2)
    baseline = Reinforce()
    begin = int(settings.warmup * settings.steps)
    skips = [layer.ops.index(SKIP) if settings.skip_rests and SKIP in layer.ops else None for layer in macro.layers]

    def step(index: int) -> Tensor:
        if index >= begin and (index - begin) % settings.arch_every == 0:
            if settings.mode == "reinforce":
                reinforce_step(about, net, arch, costs, fixed, 1e6 * target, settings, baseline)
            else:
                gate_step(about, net, arch, costs, fixed, 1e6 * target, settings, skips)
        if index < begin:  # uniform gates
            path = [int(torch.randint(len(layer.ops), ())) for layer in macro.layers]
        else:
            path = [int(torch.multinomial(torch.softmax(alpha.detach(), 0), 1)) for alpha in net.alphas]
        x, y = images.batch(settings.batch)
        return F.cross_entropy(net(channels_last(x), one_path(path)), y, label_smoothing=settings.label_smoothing)

    fit(
        Training(net, weights, schedule, also={"arch": arch, "baseline": baseline}),
        step,
        settings.steps,
        seed=context.seed,
        what="searching",
        progress=context.progress,
        checkpoint=checkpoint,
    )
    return net


def gate_step(
    about: Subject,
    net: ArchNet,
    arch: torch.optim.Optimizer,
    costs: list[Tensor],
    fixed: float,
    target: float,
    settings: ProxylessSettings,
    skips: list[int | None],
) -> None:
    """One step of alpha on validation images, weights as they are, batch norm by the batch."""
    assert settings.mode != "reinforce"
    alphas = list(net.alphas)
    before = [alpha.detach().clone() for alpha in alphas]
    gates = GateStep(alphas, settings.mode, skips)
    x, y = about.images.valid.batch(settings.arch_batch)
    ce = F.cross_entropy(net(channels_last(x), gates.mix), y)
    loss = regularised(
        ce,
        gates.expected_cost(costs, fixed),
        target,
        settings.reg,
        alpha=settings.alpha,
        beta=settings.beta,
        lambda_=settings.lambda_,
    )
    if not loss.requires_grad:  # every layer sampled its skip
        return
    for alpha, grad in zip(alphas, torch.autograd.grad(loss, alphas, allow_unused=True), strict=True):
        alpha.grad = grad
    arch.step()
    arch.zero_grad(set_to_none=True)
    if settings.mode == "two":
        keep_unsampled(alphas, before, gates.chosen)


def reinforce_step(
    about: Subject,
    net: ArchNet,
    arch: torch.optim.Optimizer,
    costs: list[Tensor],
    fixed: float,
    target: float,
    settings: ProxylessSettings,
    baseline: Reinforce,
) -> None:
    """One step of alpha by the reward accuracy (target / latency)^tradeoff of ten sampled networks."""
    logs = [torch.log_softmax(alpha, 0) for alpha in net.alphas]
    x, y = about.images.valid.batch(settings.arch_batch)
    rewards, surprises = [], []
    for _ in range(SAMPLED):
        path = [int(torch.multinomial(log.detach().exp(), 1)) for log in logs]
        with torch.no_grad():
            right = (net(channels_last(x), one_path(path)).argmax(1) == y).float().mean()
        cost = fixed + sum(float(layer[k]) for layer, k in zip(costs, path, strict=True))
        rewards.append(float(right) * (target / cost) ** settings.tradeoff)
        surprises.append(-torch.stack([log[k] for log, k in zip(logs, path, strict=True)]).sum())
    mean = sum(rewards) / SAMPLED
    baseline.baseline = mean if baseline.baseline is None else baseline.baseline + 0.99 * (mean - baseline.baseline)
    held = baseline.baseline
    loss = torch.stack([(r - held) * s for r, s in zip(rewards, surprises, strict=True)]).mean()
    for alpha, grad in zip(net.alphas, torch.autograd.grad(loss, list(net.alphas)), strict=True):
        alpha.grad = grad
    arch.step()
    arch.zero_grad(set_to_none=True)
