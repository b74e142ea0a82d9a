"""What the proofs of searches on D400 share: the oracle, a search's cost in trainings, and random search beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from headway.core.cache import StepCache
from headway.core.evidence import Evidence
from headway.core.files import cache_folder, make_folder
from headway.core.proof import ProofContext
from headway.core.system import SearchContext
from headway.vision.search.cost_table import CostTable
from headway.vision.search.images import Images, digits
from headway.vision.search.layerwise import Layerwise, d400
from headway.vision.search.oracle import LEAST_SPREAD, Oracle, brute_force
from headway.vision.search.space import Genotype
from headway.vision.search.train import TrainRecipe, channels_last, seeded

TRAINED = {True: 40, False: 400}
"""Networks that the oracle trains, by whether the proof is a quick one; the others are fitted."""
LATENCY_POINTS = 10.0
"""Points of accuracy that the largest network's latency is worth in J."""
R2, ERROR = 0.95, 0.08


@dataclass
class Court:
    """The oracle with the table that its latencies come from, and the score J."""

    oracle: Oracle
    table: CostTable
    macro: Layerwise

    @cached_property
    def latencies(self) -> dict[str, float]:
        """Of every network, over the largest one's."""
        largest = self.table.net(self.macro.net(self.macro.extreme(True)))
        return {text: self.table.net(self.macro.net(g)) / largest for text, g in self.oracle.genotypes.items()}

    def score(self, text: str, value: float) -> float:
        """Points of accuracy less 10 times latency over the largest network's."""
        return value - LATENCY_POINTS * self.latencies[text]

    def standing(self, genotype: Genotype) -> float:
        return self.oracle.standing(genotype, self.score)

    def random_search(self, trainings: int) -> float:
        return self.oracle.random_search(trainings, self.score)


def search_context(context: ProofContext, seed: int) -> SearchContext:
    """A proof's search: its target, its progress, a seed of its own."""
    folder = make_folder(cache_folder("search"))
    return SearchContext(context.target, StepCache(), folder, None, seed, context.progress)


def court(
    evidence: Evidence,
    context: ProofContext,
    table: CostTable,
    trained: int = 0,
) -> Court | None:
    """The oracle of D400, judged itself first; None where it may not judge."""
    macro = d400()
    count = trained or TRAINED[context.quick]
    oracle = brute_force(macro, digits(), StepCache(), count=count, progress=context.progress)
    evidence.bar(
        "oracle: (best - median) over the deviation of a mean of two trainings", "none",
        f">= {LEAST_SPREAD:.0f}, or it refuses to judge",
        f"{oracle.spread:.1f} (one training {oracle.seed_sd:.2f} points; {count} of 400 networks trained twice)",
        oracle.judges,
    )  # fmt: skip
    if count < 400:
        evidence.notes.append(f"{count} of 400 networks were trained; the others' accuracies are an additive fit")
    return Court(oracle, table, macro) if oracle.judges else None


def judge_table(evidence: Evidence, table: CostTable) -> None:
    """The bar on additive latency."""
    assert table.r2 is not None and table.error is not None
    evidence.bar(
        "table: predicted against measured latency of whole networks not used in the fit", "tables are additive",
        f"R2 >= {R2}, mean error <= {100 * ERROR:.0f}%",
        f"R2 {table.r2:.3f}, mean error {100 * table.error:.1f}% (batch {table.batch})",
        table.r2 >= R2 and table.error <= ERROR,
    )  # fmt: skip


def step_seconds(step: Callable[[], object], repeats: int = 6) -> float:
    """Processor seconds of a step in this thread, the median of some."""
    step()
    found = []
    for _ in range(repeats):
        begin = time.thread_time()
        step()
        found.append(time.thread_time() - begin)
    return sorted(found)[repeats // 2]


def training_seconds(macro: Layerwise, images: Images, genotypes: Sequence[Genotype], recipe: TrainRecipe) -> float:
    """Processor seconds that training one network of the space takes: the mean over some, by a few steps of each."""
    total = 0.0
    for genotype in genotypes:
        module = seeded(macro.net(genotype).build, 0)
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, nesterov=True)

        def step(module: torch.nn.Module = module, optimizer: torch.optim.Optimizer = optimizer) -> None:
            x, y = images.batch(recipe.batch)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(module(channels_last(x)), y).backward()
            optimizer.step()

        total += step_seconds(step) * recipe.steps
    return total / len(genotypes)
