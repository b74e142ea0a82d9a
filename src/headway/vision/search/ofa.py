"""Once-for-All: one nested network, shrunk progressively (Cai et al., ICLR 2020, arXiv:1908.09791).

The largest network is trained; then smaller kernels, depths and widths join, each with its teacher's soft labels and
channels sorted by importance first. Sub-networks are cut out with their weights, batch norm estimated again. An
accuracy predictor and the cost table guide an evolutionary search: another budget costs seconds, and no training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from headway.core.budget import Budget
from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.system import Found, SearchContext, Searcher
from headway.vision.search import ofa_nets as nets
from headway.vision.search.accuracy_predictor import fit_predictor, predict
from headway.vision.search.elastic import ElasticNet
from headway.vision.search.evolution import Evolution
from headway.vision.search.family import Subject, budget_latency, build, subject
from headway.vision.search.progressive import SupernetSettings, inherited, specialised, trained_supernet
from headway.vision.search.space import Genotype
from headway.vision.search.stagewise import Stagewise

SYSTEM = Card(
    slug="ofa",
    title="Once-for-All: train one network, specialise it for every machine",
    paper="Cai et al. 2020, arXiv:1908.09791",
    kind="model",
    slot="network",
    summary="one elastic supernet trained once; a sub-network for any machine and budget without retraining",
    claim="80.0% ImageNet top-1 at 595 M multiply-adds; sub-networks for any target without training again",
    extra="torch",
)


class OfaSettings(SupernetSettings):
    """Which network it is, and how the supernet is trained and searched. Defaults of training are D400's."""

    variant: Literal["max", "min", "flops-595m", "flops-389m"] = Field(
        "flops-389m", description="the largest and the smallest sub-network, or a released one"
    )
    predictor_samples: int = Field(120, ge=10, description="networks labelled for the predictor; paper: 16,000 pairs")
    population: int = Field(100, ge=4, description="networks of a generation; paper: 100")
    iterations: int = Field(50, ge=1, description="generations; paper: 500, in a space of 1e19")
    mutate: float = Field(0.1, gt=0, le=1, description="chance that a block or a depth is redrawn; paper: 0.1")
    mutate_res: float = Field(0.5, gt=0, le=1, description="chance that the resolution is redrawn; paper: 0.5")


class Ofa(Searcher[OfaSettings]):
    card = SYSTEM
    settings = OfaSettings

    def build(self, settings: OfaSettings) -> ModuleModel:
        return build(SYSTEM.slug, settings, nets.SPACES, lambda: nets.published(settings.variant))

    def spaces(self) -> Mapping[str, str]:
        return nets.ABOUT

    def search(self, space: str, budget: Budget, settings: OfaSettings, context: SearchContext) -> Found:
        about = subject(SYSTEM.slug, nets.SPACES, space, settings, context)
        macro = about.macro
        assert isinstance(macro, Stagewise)
        limit = budget_latency(budget, about.latency(macro.extreme(False)), SYSTEM.slug)
        net = trained_supernet(about, settings)
        model = predictor(about, settings, net)
        found, _ = evolve(about, settings, model, limit)
        unique = list({macro.space.text(genotype): genotype for genotype in found}.values())
        scores = predict(macro.space, model, unique)
        predicted = {
            macro.space.text(genotype): {"latency_s": about.latency(genotype), "accuracy": float(score)}
            for genotype, score in zip(unique[:12], scores[:12], strict=True)
        }
        return about.finish(unique, budget, predicted, module_of=lambda g: specialised(about, settings, net, g))


def predictor(about: Subject, settings: OfaSettings, net: ElasticNet) -> nn.Module:
    """An accuracy predictor of inherited accuracies."""
    space = about.macro.space
    rng = random.Random(about.context.seed)
    drawn = {space.text(g): g for g in (space.random(rng) for _ in range(settings.predictor_samples))}
    genotypes = list(drawn.values())
    labels = [valid for valid, _ in inherited(about, settings, net, genotypes)]
    return fit_predictor(space, genotypes, labels, about.context.seed)


def evolve(
    about: Subject, settings: OfaSettings, model: nn.Module, limit: float | None
) -> tuple[list[Genotype], list[float]]:
    """Networks within the limit by predicted accuracy, best first; and the best score of every generation."""
    macro = about.macro
    if settings.population < 4:
        raise BadInput(f"population={settings.population}", "give at least 4")
    evolution = Evolution(
        settings.population, settings.iterations, mutate=settings.mutate, rates={"r": settings.mutate_res}
    )
    return evolution.run(
        macro.space,
        lambda genotypes: predict(macro.space, model, genotypes),
        lambda genotype: limit is None or about.latency(genotype) <= limit,
        about.context.seed,
        about.context.progress,
        start=[macro.extreme(False)],
    )
