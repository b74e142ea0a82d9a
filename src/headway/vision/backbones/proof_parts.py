"""What the proofs of the families have in common: counts, exact folding, speed beside networks of timm."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.measure import Timing, compare
from headway.core.proof import ProofContext
from headway.core.threads import on_threads
from headway.core.timm_library import timm_library
from headway.vision.backbones.base import BackboneFamily
from headway.vision.count import Counts, count
from headway.vision.fold import fold, randomise_norms, relative_error
from headway.vision.lab import letters, normalised
from headway.vision.runtime.net import NativeNet
from headway.vision.train import Recipe, accuracy, train

Call = Callable[[], object]


def picture(size: int, batch: int = 1, seed: int = 0) -> Tensor:
    """(batch, 3, size, size) of Gaussian pixels."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def with_statistics(family: BackboneFamily[Any], variant: str, **arguments: Any) -> nn.Module:
    """A variant whose norms have random statistics, in `eval`."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return randomise_norms(family.variant(variant, **arguments)).eval()


def exactness(evidence: Evidence, net: nn.Module, size: int, bar: float, name: str) -> nn.Module:
    """One bar: the folded network's outputs are the plain one's. Gives the folded network."""
    short = fold(net)
    with torch.no_grad():
        error = relative_error(net(picture(size, 2)), short(picture(size, 2)))
    left = sum(isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)) for child in short.modules())
    evidence.bar(
        f"exact: {name}, folded against plain, random statistics", "exact", f"<= {bar:.0e}, no batch norm left",
        f"{error:.1e}, {left} left", error <= bar and not left,
    )  # fmt: skip
    return short


def counts_of(net: nn.Module, size: int, channels: int = 3) -> Counts:
    """On one image, by shapes alone: nothing is computed."""
    return count(copy.deepcopy(net).to("meta"), torch.zeros(1, channels, size, size, device="meta"))


def counted(evidence: Evidence, name: str, paper: str, wanted: Mapping[str, int], found: Mapping[str, int]) -> None:
    """One bar: all integers equal."""
    evidence.bar(
        f"counts: {name}", paper, ", ".join(f"{what} {value}" for what, value in wanted.items()),
        ", ".join(f"{what} {value}" for what, value in found.items()), dict(wanted) == dict(found),
    )  # fmt: skip


# ---- speed ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rival:
    """A network of timm with untrained weights, folded as ours are, beside which ours is timed."""

    name: str
    size: int

    def network(self) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            net: nn.Module = timm_library(f"the baseline {self.name}").create_model(self.name).eval()
        return fold(net, picture(self.size))


def best_call(net: nn.Module, x: Tensor) -> tuple[str, Call]:
    """The fastest way there is to run a network: its native path, or torch in one of its two layouts of memory."""
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    ways: dict[str, Call] = {
        "torch": lambda: net(x),
        "torch channels-last": lambda: last(x.contiguous(memory_format=torch.channels_last)),
    }
    native = NativeNet(net)
    _quietly(lambda: native(x))()
    if not native.reason:
        ways["native"] = lambda: native(x)
    timing = compare({name: _quietly(call) for name, call in ways.items()}, rounds=2, min_time_s=0.0, aa=False)
    name = min(ways, key=lambda way: min(timing.samples[way]))
    return name, _quietly(ways[name])


def _quietly(call: Call) -> Call:
    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def side_by_side(
    evidence: Evidence,
    context: ProofContext,
    nets: Mapping[str, tuple[nn.Module, int]],
    batch: int,
    threads: int,
    rounds: int,
) -> Timing:
    """Time networks interleaved, each in its best way; nets: name -> (network, size of its images); ours first.

    Ratios of the timing are those of the first one's rivals to it.
    """
    arms, ways = {}, []
    with on_threads(threads):
        for name, (net, size) in nets.items():
            way, arms[name] = best_call(net, picture(size, batch))
            ways.append(f"{name}: {way}")
        with context.progress.task(f"batch {batch}, {threads} threads", rounds):
            timing = compare(arms, rounds=rounds, min_time_s=0.0, seed=context.seed)
    evidence.add_timing(f"a batch of {batch}, {threads} threads", timing)
    evidence.notes.append(f"batch {batch}, {threads} threads: {'; '.join(ways)}")
    return timing


def timed(context: ProofContext, calls: Mapping[str, Call], rounds: int) -> Timing:
    """Small networks side by side, on one thread."""
    with on_threads(1):
        return compare({name: _quietly(call) for name, call in calls.items()}, rounds=rounds, seed=context.seed)


def rate(timing: Timing, arm: str, batch: int, macs: int) -> str:
    """Images and multiply-adds per second of an arm."""
    images = batch / timing.median_s(arm)
    return f"{arm} {images:.1f} images/s, {images * macs / 1e9:.1f} GMAC/s"


def gain(timing: Timing, ours: str, theirs: str) -> float:
    """How many times as many images per second ours gives: the median of the paired ratios."""
    ratios = sorted(b / a for a, b in zip(timing.samples[ours], timing.samples[theirs], strict=True))
    half = len(ratios) // 2
    return ratios[half] if len(ratios) % 2 else (ratios[half - 1] + ratios[half]) / 2


def product_rate(threads: int) -> float:
    """Multiply-adds per second of torch's own product of two large float32 matrices."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    with on_threads(threads):
        timing = compare({"product": lambda: a @ b}, rounds=7, aa=False)
    return 1024**3 / min(timing.samples["product"])


# ---- learning -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Accuracies on typefaces that were never seen, in percent, one a seed."""

    values: tuple[float, ...]
    tested: int
    """Pictures of the test."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def variance_of_mean(self) -> float:
        """Over seeds; of a single one that of the test's binomial."""
        if len(self.values) > 1:
            return statistics.variance(self.values) / len(self.values)
        return self.mean * (100.0 - self.mean) / self.tested

    def over(self, other: Score) -> tuple[float, float]:
        """Points above another score, and the standard error of that."""
        return self.mean - other.mean, (self.variance_of_mean + other.variance_of_mean) ** 0.5

    def text(self) -> str:
        return f"{self.mean:.1f} ({', '.join(f'{value:.1f}' for value in self.values)})"


def learn(
    context: ProofContext, makers: Mapping[str, Callable[[], nn.Module]], size: int, recipe: Recipe, seeds: int
) -> dict[str, Score]:
    """Train every network on letters of this size with as many seeds; seeds order both weights and batches."""
    train_on, test_on = normalised(letters("train", size), letters("test", size))
    found: dict[str, list[float]] = {name: [] for name in makers}
    with context.progress.task("training on letters", seeds * len(makers)) as task:
        for seed in range(context.seed, context.seed + seeds):
            for name, make in makers.items():
                with torch.random.fork_rng(devices=()):
                    torch.manual_seed(seed)
                    net = make()
                train(net, train_on, recipe, seed=seed)
                found[name].append(100.0 * accuracy(net, test_on))
                task.advance()
    return {name: Score(tuple(values), len(test_on)) for name, values in found.items()}


def beats(
    evidence: Evidence, scores: Mapping[str, Score], ours: str, other: str, floor: float, goal: float, paper: str
) -> None:
    """One bar: so many points above another network on unseen typefaces, and more than the standard error."""
    points, error = scores[ours].over(scores[other])
    evidence.bar(
        f"learning: {ours} over {other}, points on unseen typefaces", paper,
        f">= {floor:g} and over the error, goal {goal:g}",
        f"{points:+.1f} +- {error:.1f} ({ours} {scores[ours].text()}; {other} {scores[other].text()})",
        points >= floor and points > error,
    )  # fmt: skip
