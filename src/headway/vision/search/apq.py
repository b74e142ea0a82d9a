"""APQ: architecture, widths and bits searched together (Wang et al., CVPR 2020, arXiv:2006.08509).

A nested network with fine widths is trained once. A predictor of accuracy learns from many sub-networks with its
weights in floating point, then from few that are quantised and trained shortly, and scores an evolution over kernels,
depths, widths and bits at once, under limits on latency and energy by a table of an accelerator.

The release encodes every policy as 8 bits when it asks its predictor, and leaves the crossovers out of the population;
the paper's method does neither, nor does this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from headway.core.budget import Budget
from headway.core.card import Card
from headway.core.errors import BadInput, HeadwayError
from headway.core.module_model import ModuleModel
from headway.core.system import Found, SearchContext, Searcher
from headway.core.units import show
from headway.vision.search import apq_nets as nets
from headway.vision.search.accuracy_predictor import (
    AccuracyPredictor,
    TransferPredictor,
    fit_predictor,
    predict,
    tune_predictor,
)
from headway.vision.search.bit_costs import MEASURED, BitTable, BlockCosts, every_shape, measured, modelled, read_table
from headway.vision.search.cost_table import CostTable
from headway.vision.search.elastic import ElasticNet
from headway.vision.search.evolution import Evolution
from headway.vision.search.family import Subject, as_model, macro_of, space_and_images
from headway.vision.search.progressive import LEARNED, SupernetSettings, inherited, specialised, trained_supernet
from headway.vision.search.quantised_net import QatRecipe, calibrate, quantise, size_bytes, train_quantised
from headway.vision.search.space import Genotype, SearchSpace
from headway.vision.search.stagewise import Stagewise
from headway.vision.search.train import accuracy, seeded

SYSTEM = Card(
    slug="apq",
    title="APQ: joint search for network architecture, pruning and quantisation policy",
    paper="Wang et al. 2020, arXiv:2006.08509",
    kind="model",
    slot="network",
    summary="one search over kernels, depths, widths and bits of every block, for low-bit hardware",
    claim="+2.3% ImageNet top-1 at equal cost against searching architecture, pruning and bits one after another",
    extra="torch",
)


class ApqSettings(SupernetSettings):
    """Which network it is, and how supernet, predictor and search are run. Defaults fit the space d400-bits."""

    variant: Literal["max", "min"] = Field("max", description="the largest network at 8 bits, or the smallest at 4")
    platform: Literal["bitfusion", "measured"] = Field(
        "bitfusion", description="whose latency and energy: a BitFusion-like accelerator, or low-bit kernels timed here"
    )
    table: str = Field("", description="file of a table as released (BitFusion_new.b1.dict) or as .csv; empty: a model")
    fp32_pairs: int = Field(216, ge=10, description="networks in floating point for the predictor; paper: 80,000")
    quant_pairs: int = Field(80, ge=10, description="networks quantised and trained for it; paper: 5,000")
    label_epochs: float = Field(0.25, gt=0, description="epochs that such a network is trained; paper: 0.2 GPU hours")
    qat_epochs: float = Field(2.0, gt=0, description="epochs that the network found is trained; paper: 30")
    qat_batch: int = Field(48, ge=2, description="images in a batch of these; paper: 256")
    qat_lr: float = Field(0.01, gt=0, description="first learning rate of these; paper: 1e-3")
    predictor_steps: int = Field(
        40, ge=1, description="steps of each stage of the predictor, over all pairs; more fit the noise of few labels"
    )
    population: int = Field(100, ge=4, description="networks of a generation; paper: 100")
    iterations: int = Field(100, ge=1, description="generations; paper: 500")
    mutate: float = Field(0.1, gt=0, le=1, description="chance that a block, or a depth, is redrawn; paper: 0.1")


class Apq(Searcher[ApqSettings]):
    card = SYSTEM
    settings = ApqSettings
    limits = ("latency", "energy", "size", "quality")

    def build(self, settings: ApqSettings) -> ModuleModel:
        if bool(settings.space) != bool(settings.genotype):
            raise BadInput("apq: space and genotype go together", "give both, or a variant alone")
        shape = (settings.channels, settings.classes, settings.size)
        macro = macro_of(SYSTEM.slug, nets.SPACES, settings.space or "mbv2", *shape)
        assert isinstance(macro, Stagewise)
        chosen = macro.extreme(settings.variant == "max")
        genotype = macro.space.parse(settings.genotype) if settings.genotype else chosen
        spec = macro.net(genotype)
        module = quantise(seeded(spec.build, 0), nets.bits_of(macro, genotype))
        return as_model(SYSTEM.slug, settings, spec, module.to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]

    def spaces(self) -> Mapping[str, str]:
        return nets.ABOUT

    def search(self, space: str, budget: Budget, settings: ApqSettings, context: SearchContext) -> Found:
        about = joint_subject(space, settings, context)
        limits = about.limits(budget)
        net = trained_supernet(about.architectures, settings)
        model = quantised_predictor(about, settings, net, first_predictor(about, settings, net))
        found = evolve(about, settings, model, limits)
        unique = list({about.macro.space.text(genotype): genotype for genotype in found}.values())
        scores = predict(about.macro.space, model, unique)
        predicted = {
            about.macro.space.text(genotype): {**about.costs_of(genotype), "accuracy": float(score)}
            for genotype, score in zip(unique[:12], scores[:12], strict=True)
        }
        module_of = partial(finished, about, settings, net)
        return about.finish(unique, budget, predicted, about.costs.table.notes, module_of)


@dataclass
class JointSubject(Subject):
    """Networks with bits: what they cost is looked up by their bits."""

    costs: BlockCosts

    @property
    def stagewise(self) -> Stagewise:
        assert isinstance(self.macro, Stagewise)
        return self.macro

    @property
    def architectures(self) -> Subject:
        """The same search without bits: what the supernet and the predictor's first stage are about."""
        return replace(self, macro=nets.without_bits(self.stagewise))

    def key(self) -> list[Any]:
        return [*super().key(), repr(self.macro)]

    def costs_of(self, genotype: Genotype) -> dict[str, float]:
        """`latency_s`, and `energy_j` where the table has it."""
        return self.costs.of(genotype, nets.bits_of(self.stagewise, genotype))

    def latency(self, genotype: Genotype) -> float:
        return self.costs_of(genotype)["latency_s"]

    def measure(self, genotype: Genotype, largest: Genotype, module: nn.Module) -> dict[str, float]:
        return {**self.costs_of(genotype), "size_bytes": size_bytes(module)}

    def fits(self, genotype: Genotype, limits: Mapping[str, float]) -> bool:
        costs = self.costs_of(genotype)
        return all(costs[name] <= limit for name, limit in limits.items())

    def limits(self, budget: Budget) -> dict[str, float]:
        """The budget's limits on what the table holds; an error of exit code 1 for one that no network keeps."""
        asked = {"latency_s": budget.limit("latency"), "energy_j": budget.limit("energy")}
        made = {name: limit for name, limit in asked.items() if limit is not None}
        least = self.costs.least() if made else {}
        for name, limit in made.items():
            if name not in least:
                raise BadInput("this platform has no energies", "limit latency, or take platform=bitfusion or a table")
            if limit < least[name]:
                unit = name[-1].replace("j", "J")
                raise HeadwayError(
                    f"a limit of {show(limit, unit)} is below the cheapest network's {show(least[name], unit)}",
                    "allow apq at least that, or choose another space",
                )
        return made


def joint_subject(space: str, settings: ApqSettings, context: SearchContext) -> JointSubject:
    """Read the images, and read, model or measure what layers cost. Raises `BadInput` for a space that there is not."""
    macro, images = space_and_images(SYSTEM.slug, nets.SPACES, space, settings, context)
    assert isinstance(macro, Stagewise)
    costs = BlockCosts(macro, table_of(macro, settings, context))
    return JointSubject(SYSTEM.slug, space, macro, images, costs.table.latency, settings, context, costs)


def table_of(macro: Stagewise, settings: ApqSettings, context: SearchContext) -> BitTable:
    """What the settings name."""
    if settings.table:
        return read_table(settings.table)
    if settings.platform == "bitfusion":
        return modelled(macro)
    batch, shapes = settings.latency_batch, sorted(every_shape(macro))
    key = context.cache.key("apq-table", context.target.fingerprint, torch.get_num_threads(), batch, shapes)
    document = context.cache.json(key, lambda: measured(macro, batch, progress=context.progress).latency.to_json())
    return BitTable(CostTable.from_json(document), notes=(MEASURED,))


def plain_genotype(genotype: Genotype) -> Genotype:
    """A genotype without its bits."""
    return {name: value for name, value in genotype.items() if not name.startswith(nets.BIT_NAMES)}


def few_bits(about: Subject, settings: ApqSettings, net: ElasticNet, genotype: Genotype) -> nn.Module:
    """A sub-network of the supernet with its bits, batch norm and ranges estimated; not trained yet."""
    macro = about.macro
    assert isinstance(macro, Stagewise)
    plain = specialised(about, settings, net, plain_genotype(genotype))
    quantised = quantise(plain, nets.bits_of(macro, genotype))
    calibrate(quantised, about.images)
    return quantised


def short(settings: ApqSettings) -> QatRecipe:
    """The training of networks that are labels."""
    return QatRecipe(settings.label_epochs, settings.qat_batch, settings.qat_lr)


def labelled(
    about: Subject,
    settings: ApqSettings,
    net: ElasticNet,
    genotypes: Sequence[Genotype],
    seed: int,
) -> list[tuple[float, float]]:
    """(validation, test) accuracies of sub-networks with bits after a short training of `seed`, each once."""
    context, images, recipe = about.context, about.images, short(settings)
    chosen = settings.model_dump(include={*LEARNED, "bn_images"})

    def judge(genotype: Genotype) -> list[float]:
        quantised = few_bits(about, settings, net, genotype)
        train_quantised(quantised, images, recipe, seed)
        return [accuracy(quantised, images.valid), accuracy(quantised, images.test)]

    found = []
    with context.progress.task("training networks with few bits", len(genotypes)) as task:
        for genotype in genotypes:
            key = context.cache.key(
                "apq-label", *about.key(), chosen, asdict(recipe), about.macro.space.text(genotype), seed
            )
            valid, test = context.cache.json(key, partial(judge, genotype))
            found.append((valid, test))
            task.advance()
    return found


def finished(about: Subject, settings: ApqSettings, net: ElasticNet, genotype: Genotype) -> nn.Module:
    """A sub-network with its bits, trained; once, and goes on after Ctrl-C."""
    context = about.context
    recipe = QatRecipe(settings.qat_epochs, settings.qat_batch, settings.qat_lr)
    chosen = settings.model_dump(include={*LEARNED, "bn_images"})
    module = few_bits(about, settings, net, genotype)
    text = about.macro.space.text(genotype)
    checkpoint = about.checkpoint("qat", settings=chosen, recipe=asdict(recipe), genotype=text)

    def run() -> dict[str, np.ndarray]:
        train_quantised(module, about.images, recipe, context.seed, context.progress, checkpoint)
        return {name: value.numpy() for name, value in module.state_dict().items()}

    held = context.cache.arrays(context.cache.key("apq-net", *about.key(), chosen, asdict(recipe), text), run)
    checkpoint.unlink(missing_ok=True)
    shapes = module.state_dict()
    module.load_state_dict({name: torch.from_numpy(v).reshape(shapes[name].shape) for name, v in held.items()})
    return module.eval()


def drawn(space: SearchSpace, count: int, seed: int) -> list[Genotype]:
    """So many different genotypes, or as many of them as so many draws give."""
    rng = random.Random(seed)
    return list({space.text(g): g for g in (space.random(rng) for _ in range(count))}.values())


def first_predictor(about: JointSubject, settings: ApqSettings, net: ElasticNet) -> AccuracyPredictor:
    """Of accuracies in floating point, with the supernet's weights."""
    arch = about.architectures
    genotypes = drawn(arch.macro.space, settings.fp32_pairs, about.context.seed)
    labels = [valid for valid, _ in inherited(arch, settings, net, genotypes)]
    return fit_predictor(arch.macro.space, genotypes, labels, about.context.seed, settings.predictor_steps)


def quantised_predictor(
    about: JointSubject, settings: ApqSettings, net: ElasticNet, base: AccuracyPredictor
) -> TransferPredictor:
    """The same carried over to networks with bits."""
    seed = about.context.seed
    genotypes = drawn(about.macro.space, settings.quant_pairs, seed)
    labels = [valid for valid, _ in labelled(about, settings, net, genotypes, seed)]
    return transferred(about.macro.space, base, genotypes, labels, seed, settings.predictor_steps)


def transferred(
    space: SearchSpace,
    base: AccuracyPredictor,
    genotypes: Sequence[Genotype],
    labels: Sequence[float],
    seed: int,
    steps: int,
) -> TransferPredictor:
    """All weights of a predictor of architectures, tuned on pairs with bits."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = TransferPredictor(base, space.width - base.layers[0].in_features)  # type: ignore[operator]
    return tune_predictor(space, model, genotypes, labels, steps)


def evolve(
    about: JointSubject,
    settings: ApqSettings,
    model: nn.Module,
    limits: Mapping[str, float],
    *,
    see: Callable[[Genotype], Genotype] = lambda genotype: genotype,
    within: Callable[[Genotype], bool] = lambda _: True,
    start: Sequence[Genotype] = (),
) -> list[Genotype]:
    """Networks that keep all limits, by predicted accuracy, best first.

    see: what the predictor is shown of a genotype; within: a part of the space; start: networks to begin with.
    """
    space = about.macro.space
    evolution = Evolution(settings.population, settings.iterations, mutate=settings.mutate, by_group=True)
    found, _ = evolution.run(
        space,
        lambda genotypes: predict(space, model, [see(genotype) for genotype in genotypes]),
        lambda genotype: within(genotype) and about.fits(genotype, limits),
        about.context.seed,
        about.context.progress,
        start=[about.macro.extreme(False), *start],
    )
    return found
