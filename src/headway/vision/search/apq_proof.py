"""The proof of `apq`: the published encoding and table, the quantisers, and searches of a space small enough to know.

Three blocks of D400 at half the resolution, bits of 1x1 and depthwise convolutions tied: 13,824 networks, of which a
stratified sample and an enumerated part are quantised and trained shortly, with two seeds each.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import nn

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.core.threads import on_threads
from headway.vision.quantizers import Clipped, Symmetric
from headway.vision.search import apq_nets as nets
from headway.vision.search.accuracy_predictor import AccuracyPredictor, fit_predictor, predict
from headway.vision.search.apq import (
    SYSTEM,
    ApqSettings,
    JointSubject,
    evolve,
    joint_subject,
    labelled,
    plain_genotype,
    short,
    transferred,
)
from headway.vision.search.bit_costs import every_shape, read_table
from headway.vision.search.elastic import ElasticNet
from headway.vision.search.oracle import LEAST_SPREAD, Oracle
from headway.vision.search.progressive import inherited, specialised, trained_supernet
from headway.vision.search.quantised_net import train_quantised
from headway.vision.search.space import Genotype
from headway.vision.search.standing import search_context
from headway.vision.search.train import accuracy

BASELINE = (
    "architecture, widths and bits searched one after another at equal cost, and brute force where it can be done"
)

RELEASED = {
    "(24, 144, 56, 1, 1, 0, 1)-W4A4": (0.304336, 0.5146379),
    "(24, 144, 56, 1, 1, 0, 1)-W8A8": (0.307616, 0.5292375),
    "(144, 144, 56, 3, 1, 1, 144)-W4A4": (0.3691, 0.6951539),
    "(144, 144, 56, 3, 1, 1, 144)-W4A8": (0.514674, 0.8958432),
    "(144, 144, 56, 3, 1, 1, 144)-W8A4": (0.512838, 0.7920811),
    "(144, 144, 56, 3, 1, 1, 144)-W6A6": (1.021176, 1.069796),
    "(144, 144, 56, 3, 1, 1, 144)-W8A8": (1.022724, 1.126917),
    "head": (0.295904, 0.5061845),
    "tail": (0.081608, 0.1518076),
}
"""Entries of mit-han-lab/apq, lut/BitFusion_new.b1.dict (BSD-2-Clause): ms and mJ."""
OPTIONS = [5, 7, 11, 21, 25, 49]
ROUND_TRIPS = {True: 1_000, False: 10_000}
STRATA = 300
LABELLED = {True: 75, False: 300}
"""Networks of the stratified sample that are labelled."""
PAIRS = {True: 50, False: 80}
"""Quantised networks that the predictor learns from in the bar on transfer; the others are held out."""
EXPANDS = ((2, 2, 2), (3, 3, 3), (2, 3, 4), (4, 4, 4))
"""Width triples of the part of the space that is enumerated, over the blocks' inputs."""
BUDGETS = (0.15, 0.3, 0.5)
"""Limits on latency, as shares of the way from the cheapest to the dearest network."""
SEEDS = 2
"""Trainings of every labelled network."""
TRANSFERS = 5
FINAL = {True: 2, False: 6}
"""Trainings of every network that is compared with another."""
SAMPLE = 4


def prove(context: ProofContext) -> Evidence:
    with on_threads(1):
        return run(context)


def run(context: ProofContext, settings: ApqSettings | None = None, labels: int = 0) -> Evidence:
    """settings: of supernet and search; labels: networks of the sample; where not the proof's own."""
    evidence = context.begin(SYSTEM.slug, 1)
    encoding(evidence, ROUND_TRIPS[context.quick])
    table(evidence)
    quantisers(evidence)
    settings = settings or ApqSettings()
    about = joint_subject("d400-tied", settings, search_context(context, context.seed))
    truth = Truth(about, settings, trained_supernet(about.architectures, settings))
    eight_bits(evidence, truth)
    sample = stratified(about, labels or LABELLED[context.quick])
    transfer(evidence, truth, sample, PAIRS[context.quick])
    every = [g for g in about.macro.space.enumerate() if enumerable(g)]
    searches(evidence, truth, sample, every[:: 4 if context.quick else 1], FINAL[context.quick])
    return evidence


def encoding(evidence: Evidence, trips: int) -> None:
    macro = nets.mbv2()
    space, rng = macro.space, random.Random(0)
    found = [len(macro.middles(width)) for width in (16, 24, 40, 80, 96, 192)]
    dims = nets.without_bits(macro).space.width, space.width
    evidence.bar(
        "encoding: options of the middle widths, and dimensions without and with bits", f"{OPTIONS}; (520, 772)",
        "equal", f"{found}; {dims}", found == OPTIONS and dims == (520, 772),
    )  # fmt: skip
    wrong = 0
    for _ in range(trips):
        genotype = space.random(rng)
        wrong += space.decode(space.encode(genotype)) != genotype
    evidence.bar(
        f"encoding: genotypes of {trips} that do not come back", "one-hot", "0", str(wrong), wrong == 0,
    )  # fmt: skip


def table(evidence: Evidence) -> None:
    """Listed entries through a file in the released form, and all its keys."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.dict"
        path.write_text(json.dumps({key: {"latency": a, "energy": b} for key, (a, b) in RELEASED.items()}))
        read = read_table(path)
    keys = [key for key in RELEASED if key not in ("head", "tail")]
    said = {name: read.ends[name] + value for name, value in read.shapes(keys).items()}
    known = {"latency_s": 1e-3 * sum(a for a, _ in RELEASED.values())}
    known["energy_j"] = 1e-3 * sum(b for _, b in RELEASED.values())
    error = max(abs(said[name] / known[name] - 1) for name in known)
    shapes = every_shape(nets.mbv2())
    evidence.bar(
        "table: keys of the paper's space, and the sum of the listed entries, relative",
        "6,567 keys", "6567 and <= 1e-9", f"{len(shapes)} and {error:.0e}",
        len(shapes) == 6567 and set(keys) <= set(shapes) and error <= 1e-9,
    )  # fmt: skip


def quantisers(evidence: Evidence) -> None:
    """Levels, idempotence and gradients of both quantisers at 2 to 8 bits on random tensors."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(20_000, generator=generator)
    good = []
    for bits in range(2, 9):
        arms: list[tuple[nn.Module, int]] = [(Symmetric(bits, x), 2**bits - 1)]
        arms += [(Clipped(bits, True, 2.0), 2**bits - 1), (Clipped(bits, False, 2.0), 2**bits)]
        for quantiser, levels in arms:
            once = quantiser(x).detach()
            good.append(len(once.unique()) <= levels and torch.equal(quantiser(once), once))
    clipped = Clipped(4, False, 2.0)
    for at, gradient in ((-1.0, 0.0), (1.0, 0.0), (2.5, 1.0)):
        clipped.limit.grad = None
        clipped(torch.tensor([at])).sum().backward()
        assert clipped.limit.grad is not None
        good.append(float(clipped.limit.grad) == gradient)
    evidence.bar(
        "quantiser: levels, Q(Q(x)) = Q(x), gradient of the limit, cases that hold",
        "2^b - 1 and 2^b levels; 1 beyond, 0 within", f"all of {len(good)}", str(sum(good)), all(good),
    )  # fmt: skip


@dataclass
class Truth:
    """What is known of the space's networks: accuracies in points, every training kept by content."""

    about: JointSubject
    settings: ApqSettings
    net: ElasticNet

    @property
    def steps(self) -> int:
        """Of every predictor."""
        return self.settings.predictor_steps

    @cached_property
    def architectures(self) -> dict[str, tuple[Genotype, float]]:
        """Every architecture with its validation accuracy in floating point, by its text."""
        arch = self.about.architectures
        every = {arch.macro.space.text(g): g for g in arch.macro.space.enumerate()}
        found = inherited(arch, self.settings, self.net, list(every.values()))
        return {text: (g, 100 * valid) for (text, g), (valid, _) in zip(every.items(), found, strict=True)}

    def plain(self, genotype: Genotype) -> float:
        """Validation accuracy of a network's architecture in floating point."""
        return self.architectures[self.about.architectures.macro.space.text(plain_genotype(genotype))][1]

    @cached_property
    def base(self) -> AccuracyPredictor:
        pairs = self.architectures.values()
        space = self.about.architectures.macro.space
        return fit_predictor(space, [g for g, _ in pairs], [v for _, v in pairs], self.about.context.seed, self.steps)

    def seen(self, genotypes: Sequence[Genotype], seeds: int = SEEDS) -> tuple[np.ndarray, np.ndarray]:
        """(validation, test) accuracies after the short training: (seeds, networks) each."""
        found = [labelled(self.about, self.settings, self.net, genotypes, seed) for seed in range(seeds)]
        both = 100 * np.array(found)
        return both[..., 0], both[..., 1]


def stratified(about: JointSubject, count: int) -> list[Genotype]:
    """Networks evenly spread over the space by latency: one at random of each of 300 strata, `count` of these."""
    every = sorted(about.macro.space.enumerate(), key=about.latency)
    rng = random.Random(0)
    edges = [len(every) * i // STRATA for i in range(STRATA + 1)]
    drawn = [every[rng.randrange(low, high)] for low, high in pairwise(edges)]
    return [drawn[STRATA * i // count] for i in range(count)]


def enumerable(genotype: Genotype) -> bool:
    """Whether a network is in the part that is enumerated: kernels of 5, four width triples, every policy of bits."""
    kernels = {genotype[name] for name in genotype if name.startswith("k")}
    return kernels == {5} and tuple(genotype[name] for name in genotype if name.startswith("e")) in EXPANDS


def eight_bits(evidence: Evidence, truth: Truth) -> None:
    """Networks at 8 bits against the same in floating point, trained further in the same way."""
    about, settings = truth.about, truth.settings
    rng = random.Random(1)
    space = about.macro.space
    chosen = [about.macro.extreme(True)]
    chosen += [nets.as_eight_bits(space.random(rng)) for _ in range(SAMPLE - 1)]
    quantised = truth.seen(chosen)[1].mean()
    recipe = short(settings)
    plain = []
    for genotype, seed in product(chosen, range(SEEDS)):
        key = about.context.cache.key("apq-plain", about.key(), settings.model_dump(), space.text(genotype), seed)

        def judge(genotype: Genotype = genotype, seed: int = seed) -> float:
            net = specialised(about, settings, truth.net, plain_genotype(genotype))
            train_quantised(net, about.images, recipe, seed)
            return accuracy(net, about.images.test)

        plain.append(100 * about.context.cache.json(key, judge))
    gap = float(quantised - np.mean(plain))
    evidence.bar(
        f"quantiser: accuracy of {SAMPLE} networks at 8 bits, less the same training in floating point",
        "none lost", ">= -0.5 points", f"{gap:+.2f} ({quantised:.1f} and {np.mean(plain):.1f})", gap >= -0.5,
    )  # fmt: skip


def transfer(evidence: Evidence, truth: Truth, sample: Sequence[Genotype], pairs: int) -> None:
    """Kendall's tau on networks held out, transferred and from scratch, with all pairs and with a quarter."""
    space = truth.about.macro.space
    valid = truth.seen(sample)[0].mean(0)
    found: dict[tuple[str, int], list[float]] = {}
    for seed in range(TRANSFERS):
        order = random.Random(seed).sample(range(len(sample)), len(sample))
        held = order[pairs:]
        unseen, right = [sample[i] for i in held], valid[held]
        for count in (pairs, pairs // 4):
            known, labels = [sample[i] for i in order[:count]], [float(valid[i]) for i in order[:count]]
            arms: dict[str, nn.Module] = {
                "transferred": transferred(space, truth.base, known, labels, seed, truth.steps),
                "scratch": fit_predictor(space, known, labels, seed, truth.steps),
            }
            for name, model in arms.items():
                tau = kendalltau(predict(space, model, unseen), right).statistic
                found.setdefault((name, count), []).append(float(tau))
    tau = {key: statistics.fmean(values) for key, values in found.items()}
    ours, theirs = tau["transferred", pairs], tau["scratch", pairs]
    quarter = tau["transferred", pairs // 4]
    evidence.bar(
        f"transfer: tau on {len(sample) - pairs} networks held out, {pairs} pairs, mean of {TRANSFERS} seeds, against "
        "a predictor from scratch", "much better at equal data", ">= +0.1", f"{ours - theirs:+.3f} ({ours:.3f} and "
        f"{theirs:.3f})", ours >= theirs + 0.1,
    )  # fmt: skip
    evidence.bar(
        f"transfer: tau with {pairs // 4} pairs, less that from scratch with {pairs}", "a tenth of the data", ">= 0",
        f"{quarter - theirs:+.3f} ({quarter:.3f})", quarter >= theirs,
    )  # fmt: skip


def one_after_another(truth: Truth, model: nn.Module, limit: float) -> Genotype:
    """Kernels, then widths, then bits, each the best that a third of the way to the limit allows (of the logarithm).

    Kernels and widths by accuracy in floating point, known of every architecture; bits by `model`. Where no bits keep
    the limit then, the first two go further.
    """
    about = truth.about
    space = about.macro.space
    largest = about.macro.extreme(True)
    for share in (1 / 3, 0.4, 0.45, 0.5):
        ratio = (limit / about.latency(largest)) ** share
        cap = about.latency(largest) * ratio
        chosen = largest
        for kinds in ("k", "e"):
            options = _variants(about, chosen, kinds)
            fits = [g for g in options if about.latency(g) <= cap] or [min(options, key=about.latency)]
            chosen = max(fits, key=truth.plain)
            cap *= ratio
        fits = [g for g in _variants(about, chosen, "wa") if about.latency(g) <= limit]
        if fits:
            return fits[int(np.argmax(predict(space, model, fits)))]
    return about.macro.extreme(False)


def _variants(about: JointSubject, genotype: Genotype, kinds: str) -> list[Genotype]:
    """All networks that differ from one in choices of such names."""
    free = [choice for choice in about.macro.space.choices if choice.name[0] in kinds]
    values = product(*(choice.options for choice in free))
    names = [choice.name for choice in free]
    return [{**genotype, **dict(zip(names, each, strict=True))} for each in values]


def searches(
    evidence: Evidence, truth: Truth, sample: Sequence[Genotype], every: Sequence[Genotype], trainings: int
) -> None:
    about = truth.about
    text = about.macro.space.text
    tested = truth.seen(every)[1]
    known = {text(g): float(points) for g, points in zip(every, tested.mean(0), strict=True)}
    oracle = Oracle(about.macro.space, {text(g): list(tested[:, i]) for i, g in enumerate(every)})
    evidence.bar(
        "oracle: (best - median) over the deviation of a mean of two trainings", "none",
        f">= {LEAST_SPREAD:.0f}, or it refuses to judge",
        f"{oracle.spread:.1f} (one training {oracle.seed_sd:.2f} points; {len(every)} networks trained twice)",
        oracle.judges,
    )  # fmt: skip
    if not oracle.judges:
        return
    labels = [float(points) for points in truth.seen(sample)[0].mean(0)]
    model = transferred(about.macro.space, truth.base, sample, labels, about.context.seed, truth.steps)
    dear, cheap = (about.latency(about.macro.extreme(large)) for large in (True, False))
    limits = [cheap + share * (dear - cheap) for share in BUDGETS]
    gaps = []
    for limit in limits:
        inside = [g for g in every if about.latency(g) <= limit]
        found = _found(truth, model, limit, within=lambda g: text(g) in known, start=inside)
        gaps.append(max(known[text(g)] for g in inside) - known[text(found)])
    evidence.bar(
        f"search: points below the best of the {len(every)} enumerated networks under {len(limits)} limits", "none",
        "<= 1 at each", ", ".join(f"{gap:.2f}" for gap in gaps), max(gaps) <= 1,
    )  # fmt: skip
    arms = {
        "joint": [_found(truth, model, limit) for limit in limits],
        "sequential": [one_after_another(truth, model, limit) for limit in limits],
        "blind": [_found(truth, model, limit, see=nets.as_eight_bits) for limit in limits],
    }
    points = {name: truth.seen(found, trainings)[1] for name, found in arms.items()}
    over = [within for genotypes in arms.values() for within in map(about.latency, genotypes)]
    assert all(cost <= limit for cost, limit in zip(over, limits * len(arms), strict=True))
    against(evidence, arms, points)
    evidence.notes += [
        f"latency <= {1e6 * limit:.1f} us: {name} {text(found[i])}"
        for i, limit in enumerate(limits)
        for name, found in arms.items()
    ]
    evidence.notes.append("the release encodes every policy as 8 bits when it asks its predictor: that is the last bar")


def _found(
    truth: Truth,
    model: nn.Module,
    limit: float,
    see: Callable[[Genotype], Genotype] = dict,
    within: Callable[[Genotype], bool] = lambda _: True,
    start: Sequence[Genotype] = (),
) -> Genotype:
    found = evolve(truth.about, truth.settings, model, {"latency_s": limit}, see=see, within=within, start=start[:1])
    return found[0]


def against(
    evidence: Evidence,
    arms: Mapping[str, Sequence[Genotype]],
    points: Mapping[str, np.ndarray],
) -> None:
    """The joint search's networks before the pipeline's, and before those of a search blind to bits."""
    trainings = len(points["joint"])

    def compared(other: str) -> tuple[np.ndarray, np.ndarray]:
        """(mean advantage in points, its standard error) under each limit, trainings of one seed paired."""
        gap = points["joint"] - points[other]
        return gap.mean(0), gap.std(0, ddof=1) / np.sqrt(trainings)

    gain, error = compared("sequential")
    evidence.bar(
        f"search: points above the pipeline's network at equal cost, under {len(gain)} limits, {trainings} trainings",
        "+2.3 points on ImageNet", ">= 0 at each, above its standard error at one",
        ", ".join(f"{g:+.2f} +- {e:.2f}" for g, e in zip(gain, error, strict=True)),
        bool((gain >= 0).all() and (gain > error).any()),
    )  # fmt: skip
    loss, error = compared("blind")
    few = {name: sum(v == 4 for g in found for v in g.values()) for name, found in arms.items()}
    evidence.bar(
        "negative control: points that a search blind to bits loses, and how often it takes 4 bits",
        "the release encodes every policy as 8 bits", "above the standard error in the mean, 4 bits more often",
        f"{loss.mean():.2f} +- {float(np.sqrt((error**2).sum()) / len(error)):.2f} "
        f"({', '.join(f'{x:.2f}' for x in loss)}), {few['blind']} times against {few['joint']}",
        bool(loss.mean() > np.sqrt((error**2).sum()) / len(error) and few["blind"] > few["joint"]),
    )  # fmt: skip
