"""FBNet: a layer-wise supernet under Gumbel-softmax, latency in the loss (Wu et al., CVPR 2019, arXiv:1812.03443).

Every layer computes all its candidates and mixes them by m = softmax((theta + G) / tau), G drawn once per layer and
forward pass; the same m weighs the candidates' latencies. Weights learn on the training images, theta on others, in
turns of an epoch. What comes out is a distribution: networks are sampled from it and trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from headway.core.budget import Budget
from headway.core.card import Card
from headway.core.errors import BadInput, Lacking
from headway.core.module_model import ModuleModel
from headway.core.system import Found, SearchContext, Searcher
from headway.training.fit import Training, fit
from headway.vision.search import fbnet_nets as nets
from headway.vision.search.derive import most_probable
from headway.vision.search.family import NetSettings, Subject, budget_latency, build, subject
from headway.vision.search.layerwise import Layerwise
from headway.vision.search.live_bytes import peak_bytes
from headway.vision.search.supernet import SuperNet, layer_costs, path_accuracy
from headway.vision.search.train import channels_last, seeded

SYSTEM = Card(
    slug="fbnet",
    title="FBNet: differentiable search over a layer-wise space",
    paper="Wu et al. 2019, arXiv:1812.03443",
    kind="model",
    slot="network",
    summary="all candidates of a layer mixed by Gumbel-softmax; gives a distribution of networks to sample from",
    claim="FBNet-B: 74.1% top-1 at 23.1 ms on a Samsung S8, 2.4x smaller and 1.5x faster than MobileNetV2-1.3",
    extra="torch",
)

ROOM = 0.8
"""Share of the machine's memory that all paths may take."""


class FbnetSettings(NetSettings):
    """Which network it is, and how a search goes. The defaults of the search are those of the space D400."""

    variant: Literal["a", "b", "c"] = Field("c", description="the released net, by growing cost")
    bias: bool = Field(True, description="biases beside batch norm in a variant, as the released code has")
    expand_e1: bool = Field(
        False, description="a first 1x1 convolution also in a variant's blocks of expansion 1: the paper's and timm's"
    )
    epochs: int = Field(12, ge=2, description="turns of weights, then theta; paper: 90")
    warmup_epochs: int = Field(4, ge=0, description="first epochs in which theta rests; paper: 10")
    weight_steps: int = Field(50, ge=1, description="steps of the weights in an epoch; paper: 80% of the images")
    theta_steps: int = Field(20, ge=1, description="steps of theta in an epoch; paper: the other 20%")
    batch: int = Field(48, ge=2, description="images in a batch; paper: 192")
    tau0: float = Field(5.0, gt=0, description="temperature of the first epoch; paper: 5")
    tau_end: float = Field(0.2, gt=0, description="temperature of the last epoch; paper: 0.09")
    w_lr: float = Field(0.15, gt=0, description="first learning rate of the weights, to 0 by a cosine; paper: 0.1")
    weight_decay: float = Field(1e-4, ge=0, description="of the weights; paper: 1e-4")
    theta_lr: float = Field(0.05, gt=0, description="of Adam on theta; paper: 0.01")
    theta_wd: float = Field(5e-4, ge=0, description="weight decay of theta; paper: 5e-4")
    alpha: float = Field(0.2, gt=0, description="factor of the loss; paper: 0.2")
    beta: float = Field(0.6, ge=0, description="exponent of ln latency in microseconds; paper: 0.6")
    samples: int = Field(6, ge=1, le=100, description="networks sampled from the distribution and trained; paper: ~6")


class GumbelNet(SuperNet):
    """A supernet with its `thetas`, one vector a layer."""

    def __init__(self, macro: Layerwise) -> None:
        super().__init__(macro)
        self.thetas = nn.ParameterList(nn.Parameter(torch.zeros(len(layer.ops))) for layer in macro.layers)

    def weights(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith("thetas.")]

    def probabilities(self) -> list[np.ndarray]:
        """P of the candidates, by layer."""
        return [torch.softmax(theta.detach().double(), 0).numpy() for theta in self.thetas]

    def entropy(self) -> float:
        """Of the distribution over networks, in nats."""
        return float(-sum((p * np.log(np.maximum(p, 1e-300))).sum() for p in self.probabilities()))


class GumbelMixture:
    """One sample of the mixing weights of all layers; `mix` and `cost` use the same."""

    def __init__(self, thetas: list[nn.Parameter], tau: float) -> None:
        self.weights = [F.gumbel_softmax(theta, tau) for theta in thetas]

    def mix(self, layer: int, ops: nn.ModuleList, x: Tensor) -> Tensor:
        """A `Mix`: all candidates, weighted."""
        parts = [m * op(x) for m, op in zip(self.weights[layer], ops, strict=True)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def cost(self, costs: list[Tensor], fixed: float) -> Tensor:
        """LAT = fixed + sum over layers and candidates of m t."""
        return fixed + torch.stack([(m * t).sum() for m, t in zip(self.weights, costs, strict=True)]).sum()


def loss_of(ce: Tensor, cost: Tensor, alpha: float, beta: float) -> Tensor:
    """CE alpha (ln LAT)^beta; `cost` in microseconds, above e."""
    return ce * alpha * torch.log(cost) ** beta


class Fbnet(Searcher[FbnetSettings]):
    card = SYSTEM
    settings = FbnetSettings

    def build(self, settings: FbnetSettings) -> ModuleModel:
        return build(
            SYSTEM.slug,
            settings,
            nets.SPACES,
            lambda: nets.published(settings.variant, bias=settings.bias, expand_e1=settings.expand_e1),
        )

    def spaces(self) -> Mapping[str, str]:
        return nets.ABOUT

    def search(self, space: str, budget: Budget, settings: FbnetSettings, context: SearchContext) -> Found:
        about = subject(SYSTEM.slug, nets.SPACES, space, settings, context)
        macro = about.macro
        assert isinstance(macro, Layerwise)
        limit = budget_latency(budget, about.latency(macro.extreme(False)), SYSTEM.slug)
        net = searched(about, settings)
        costs, fixed = layer_costs(macro, about.table)
        drawn = sampled(net, settings.samples, context.seed)
        notes = []
        if max(p.max() - p.min() for p in net.probabilities()) < 0.01:
            notes.append("the probabilities of all operations are alike: the search saw no signal")
        if limit is not None:
            fits = [path for path in drawn if about.latency(net.genotype(path)) <= limit]
            if not fits:
                notes.append("no sample keeps the latency: the most probable network that does was taken")
                path = most_probable(net.probabilities(), [c.numpy() for c in costs], fixed, 1e6 * limit)
                fits = [] if path is None else [path]
            drawn = fits
        scored = []
        for path in drawn:
            genotype = net.genotype(path)
            scored.append((about.train(genotype)[1], genotype))
        scored.sort(key=lambda pair: -pair[0])
        predicted = {
            macro.space.text(genotype): {
                "latency_s": about.latency(genotype),
                "accuracy": path_accuracy(net, net.indices(genotype), about.images.valid),
            }
            for _, genotype in scored
        }
        return about.finish([genotype for _, genotype in scored], budget, predicted, notes)


def sampled(net: GumbelNet, count: int, seed: int) -> list[list[int]]:
    """Different paths drawn from P; fewer than asked where P holds fewer."""
    rng = np.random.default_rng(seed)
    found: list[list[int]] = []
    for _ in range(100 * count):
        path = [int(rng.choice(len(p), p=p / p.sum())) for p in net.probabilities()]
        if path not in found:
            found.append(path)
        if len(found) == count:
            break
    return found


def searched(about: Subject, settings: FbnetSettings) -> GumbelNet:
    """The supernet after the search, once: weights and thetas are kept by content."""
    macro = about.macro
    assert isinstance(macro, Layerwise)
    chosen = settings.model_dump(exclude={"variant", "space", "genotype", "samples"})
    checkpoint = about.checkpoint("supernet", settings=chosen)
    key = about.context.cache.key("fbnet", *about.key(), chosen, about.table.to_json())

    def run() -> dict[str, np.ndarray]:
        net = _search(about, settings, checkpoint)
        return {name: value.numpy() for name, value in net.state_dict().items()}

    held = about.context.cache.arrays(key, run)
    checkpoint.unlink(missing_ok=True)
    net = GumbelNet(macro)
    shapes = net.state_dict()
    net.load_state_dict({name: torch.from_numpy(value).reshape(shapes[name].shape) for name, value in held.items()})
    return net


def tau_of(settings: FbnetSettings, epoch: int) -> float:
    """Geometric from `tau0` to `tau_end` over the epochs."""
    return settings.tau0 * (settings.tau_end / settings.tau0) ** (epoch / (settings.epochs - 1))


def _search(about: Subject, settings: FbnetSettings, checkpoint: Path) -> GumbelNet:
    macro, images, context = about.macro, about.images, about.context
    assert isinstance(macro, Layerwise)
    if settings.batch > len(images.valid):
        raise BadInput(f"{len(images.valid)} validation images for batches of {settings.batch}", "lower batch")
    costs, fixed = layer_costs(macro, about.table)
    if fixed + sum(float(cost.min()) for cost in costs) <= math.e:
        raise BadInput(f"latencies of {fixed:.3g} us have no logarithm to speak of", "raise latency_batch")
    net = seeded(lambda: GumbelNet(macro), context.seed)
    assert isinstance(net, GumbelNet)
    check_memory(net, settings.batch, context.target.ram_bytes)
    thetas = torch.optim.Adam(net.thetas.parameters(), settings.theta_lr, weight_decay=settings.theta_wd)
    weights = torch.optim.SGD(net.weights(), settings.w_lr, momentum=0.9, weight_decay=settings.weight_decay)
    steps = settings.epochs * settings.weight_steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(weights, steps)

    def forward(epoch: int, x: Tensor, y: Tensor) -> Tensor:
        mixture = GumbelMixture(list(net.thetas), tau_of(settings, epoch))
        ce = F.cross_entropy(net(channels_last(x), mixture.mix), y)
        return loss_of(ce, mixture.cost(costs, fixed), settings.alpha, settings.beta)

    def theta_epoch(epoch: int) -> None:
        for _ in range(settings.theta_steps):
            loss = forward(epoch, *images.valid.batch(settings.batch))
            for theta, grad in zip(net.thetas, torch.autograd.grad(loss, list(net.thetas)), strict=True):
                theta.grad = grad
            thetas.step()
            thetas.zero_grad(set_to_none=True)

    def step(index: int) -> Tensor:
        epoch, at = divmod(index, settings.weight_steps)
        if at == 0 and epoch > settings.warmup_epochs:  # theta's turn of the epoch before
            theta_epoch(epoch - 1)
        for theta in net.thetas:
            theta.requires_grad_(False)
        try:
            return forward(epoch, *images.batch(settings.batch))
        finally:
            for theta in net.thetas:
                theta.requires_grad_(True)

    fit(
        Training(net, weights, schedule, also={"thetas": thetas}),
        step,
        steps,
        seed=context.seed,
        what="searching",
        progress=context.progress,
        checkpoint=checkpoint,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(context.seed * 1_000_003 + steps)
        theta_epoch(settings.epochs - 1)
    return net


def check_memory(net: GumbelNet, batch: int, ram_bytes: int) -> None:
    """Refuse before the start what would not fit: one image's step is run, its bytes times the batch."""
    macro = net.macro
    x = torch.randn(2, macro.stem.inside, macro.size, macro.size)
    mixture = GumbelMixture(list(net.thetas), 1.0)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    one = peak_bytes(lambda: net(x, mixture.mix).sum()) / 2
    net.load_state_dict(state)  # batch norm saw that image
    if one * batch > ROOM * ram_bytes:
        raise Lacking(
            f"all paths at once need {one * batch / 1e9:.1f} GB of activations, there are {ram_bytes / 1e9:.1f}",
            "lower batch, or search with proxylessnas, which keeps one path",
        )
