"""Proof of `dynamicvis`: the card's counts, exactness, cost beside ViT-B/16, and what selection does to quality.

Weights of the cost part are untrained. Each configuration runs in a process of its own, in turns, so that its peak of
memory is its own; memory is what the run takes above the resident size of the built network.

Quality: scenes of one texture with one target of 10 to 14 pixels, whose shape is the class. The net without reduction
is trained first, and where it does not learn the scenes, nothing is said of selection.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.core.sandbox import Limits, run_function
from headway.core.timm_library import timm_library
from headway.vision.backbones import proof_parts as parts
from headway.vision.backbones.dynamicvis import (
    CONFIGS,
    KEEP,
    SYSTEM,
    BiMamba,
    Config,
    DynamicVis,
    SpatialSparseMixer,
    TwicePassed,
    pooled,
)
from headway.vision.backbones.selective_scan import selective_scan, selective_scan_reference
from headway.vision.backbones.token_selector import TokenSelector
from headway.vision.count import count
from headway.vision.data import photo
from headway.vision.fold import relative_error
from headway.vision.lab import Pictures
from headway.vision.train import Recipe, accuracy, train

BASELINE = "ViT-B/16 of timm at the same size, with its fused and with its plain attention, in a process of its own"

OFF = (0, 0, 0, 0)


def prove(context: ProofContext) -> Evidence:
    evidence = context.begin(SYSTEM.slug, context.threads or 1)
    structure(evidence)
    exactness(evidence)
    cost(evidence, context)
    quality(evidence, context)
    return evidence


# ---- structure ------------------------------------------------------------------------------------------------------

COUNTS = {
    ("b", 512, KEEP): (35_172_672, 1_572_864, 29_636_689_920, 1_042_808_832),
    ("b", 512, OFF): (35_162_496, 1_572_864, 54_877_224_960, 2_628_255_744),
    ("b", 2048, KEEP): (35_172_672, 25_165_824, 454_878_560_256, 15_948_840_960),
    ("l", 2048, KEEP): (89_145_088, 33_554_432, 1_247_773_982_720, 34_351_349_760),
}
"""Of the released code: parameters, position embedding, multiply-adds of layers and of scans."""


def counts(variant: str, size: int, keep: tuple[int, ...], released: bool) -> tuple[int, int, int, int]:
    with torch.device("meta"):
        config = replace(CONFIGS[variant], keep=keep)
        net = DynamicVis(config, 0, image_size=size, mixer=TwicePassed if released else BiMamba)
        net.reset_classifier(0, "")
        found = count(net, torch.zeros(1, 3, size, size))
        positions = sum(value.numel() for name, value in net.named_parameters() if name.endswith("position"))
    return found.trainable - positions, positions, found.layer_macs, found.attention_macs


def structure(evidence: Evidence) -> None:
    """Bar 1, counts."""
    names = ("parameters", "positions", "layer MACs", "scan MACs")
    for (variant, size, keep), wanted in COUNTS.items():
        found = counts(variant, size, keep, released=True)
        name = f"{variant} at {size}x{size}, keep {','.join(map(str, keep))}, mixer as released"
        parts.counted(
            evidence, name, "released code",
            dict(zip(names, wanted, strict=True)), dict(zip(names, found, strict=True)),
        )  # fmt: skip
        here = counts(variant, size, keep, released=False)[2]
        evidence.notes.append(
            f"{variant} at {size}: projections that both directions share, computed once: {here / 1e9:.1f} GMAC"
        )


def exactness(evidence: Evidence) -> None:
    """Bar 1, the scan and the two limits of the mixer."""
    random = torch.Generator().manual_seed(0)
    errors = []
    for tokens in (1, 3, 257, 4096):
        u, b, c = (torch.randn(1, tokens, width, generator=random) for width in (24, 16, 16))
        dt = 0.1 * torch.rand(1, tokens, 24, generator=random)
        a, d = -torch.arange(1.0, 17.0).repeat(24, 1), torch.ones(24)
        for reverse in (False, True):
            exact = selective_scan_reference(u, dt, a, b, c, d, reverse=reverse)
            errors.append(relative_error(exact, selective_scan(u, dt, a, b, c, d, reverse=reverse)))
    evidence.bar(
        "exact: tiled scan against the sequential one, T = 1, 3, 257, 4096, both ways", "", "<= 1e-5",
        f"{max(errors):.1e}", max(errors) <= 1e-5,
    )  # fmt: skip
    x, config = torch.randn(2, 192, 96, generator=random), CONFIGS["b"]
    with torch.no_grad():
        plain = SpatialSparseMixer(96, 0, 12, config, BiMamba)
        released = TwicePassed(96)
        released.load_state_dict(plain.mixer.state_dict())
        error = relative_error(released(torch.cat([pooled(x, 12), x], 1))[:, 12:], plain(x))
        evidence.bar(
            "exact: no router against the released Mamba both ways", "", "<= 1e-5", f"{error:.1e}", error <= 1e-5
        )
        sparse = SpatialSparseMixer(96, 1, 12, config, BiMamba).eval()
        assert sparse.selector is not None
        nn.init.zeros_(sparse.selector.router.weight)
        mixed = sparse.mixer(torch.cat([pooled(x, 12), x], 1))[:, 12:]
        error = relative_error(x + mixed / x.shape[1], sparse(x))
    evidence.bar(
        "exact: reduction 1 and equal importance against x + mixed / N", "", "<= 1e-6", f"{error:.1e}", error <= 1e-6
    )


# ---- cost -----------------------------------------------------------------------------------------------------------

OURS, WHOLE, FUSED, NAIVE = "dynamicvis-b", "dynamicvis-b without reduction", "ViT-B/16", "ViT-B/16, plain attention"
MEMORY = 1.2e9
"""Bytes above the network's at 2048x2048."""


def network(name: str, size: int) -> nn.Module:
    if name in (OURS, WHOLE):
        config = CONFIGS["b"] if name == OURS else replace(CONFIGS["b"], keep=OFF)
        return DynamicVis(config, 0, image_size=size).eval()
    timm = timm_library(f"the baseline {name}")
    timm.layers.set_fused_attn(name == FUSED)
    made: nn.Module = timm.create_model("vit_base_patch16_224", img_size=size, num_classes=0).eval()
    return made


def run_once(name: str, size: int, threads: int) -> dict[str, float]:
    """Seconds of a pass, and bytes resident before it and at most: called in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = network(name, size)
    with torch.inference_mode():
        torch.randn(64, 64) @ torch.randn(64, 64)
        before = _resident()
        x = torch.randn(1, 3, size, size)
        start = time.perf_counter()
        net(x)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "bytes": max(0, peak - before)}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@dataclass
class Cost:
    seconds: list[float]
    bytes: list[float]

    @property
    def time(self) -> float:
        return min(self.seconds)

    @property
    def memory(self) -> float:
        return statistics.median(self.bytes)

    def text(self) -> str:
        return f"{self.time:.2f} s, {self.memory / 1e6:.0f} MB"


def measured(
    evidence: Evidence, context: ProofContext, arms: list[tuple[str, int]], rounds: int, threads: int
) -> dict[tuple[str, int], Cost]:
    """Every network and size in turns, the order turned round each time; an arm that fails is left out and told."""
    found: dict[tuple[str, int], Cost] = {}
    function = f"{__name__}:run_once"
    with context.progress.task("cost", rounds * len(arms)) as task:
        for number in range(rounds):
            for name, size in arms if number % 2 == 0 else arms[::-1]:
                arguments = {"name": name, "size": size, "threads": threads}
                outcome = run_function(function, arguments, Limits(wall_s=3600.0))
                task.advance()
                if not outcome.ok:
                    evidence.notes.append(f"{name} at {size}x{size}: {outcome.explain()}")
                    continue
                cost = found.setdefault((name, size), Cost([], []))
                cost.seconds.append(outcome.value["seconds"])
                cost.bytes.append(outcome.value["bytes"])
    evidence.notes += [f"{name} at {size}x{size}: {cost.text()}" for (name, size), cost in found.items()]
    return found


def exponent(sizes: dict[int, float]) -> float:
    """p of time ~ pixels^p, by least squares of logarithms; sizes: side -> seconds."""
    pixels, seconds = ([math.log(v) for v in values] for values in ([s * s for s in sizes], sizes.values()))
    return statistics.linear_regression(pixels, seconds).slope


def cost(evidence: Evidence, context: ProofContext) -> None:
    """Bars 2 and 3; `--quick` has smaller images, and the same bars but for ViT's growth."""
    threads = context.threads or 1
    sizes = (192, 256, 384, 512) if context.quick else (512, 768, 1024, 2048)
    half, large = sizes[-1] // 2, sizes[-1]
    size = large if context.quick else half
    arms = [(OURS, side) for side in sizes] + [(FUSED, half), (FUSED, large), (NAIVE, size), (WHOLE, size)]
    found = measured(evidence, context, arms, 1 if context.quick else 3, threads)

    def bar(name: str, paper: str, bar: str, needs: list[tuple[str, int]], judged: Any) -> None:
        """One that could not run misses."""
        if all(arm in found for arm in needs):
            here, met = judged(*(found[arm] for arm in needs))
        else:
            here, met = "did not run", False
        evidence.bar(name, paper, bar, here, met)

    def grows(small: Cost, big: Cost, vit_small: Cost, vit_big: Cost) -> tuple[str, bool]:
        ours, vit = big.time / small.time, vit_big.time / vit_small.time
        slope = exponent({side: found[OURS, side].time for side in sizes if (OURS, side) in found})
        return f"{ours:.2f}x (pixels^{slope:.2f} over {len(sizes)} sizes), ViT {vit:.2f}x", ours <= 4.4 and (
            vit >= 8.0 or (context.quick and vit > ours)
        )

    bar(
        f"cost: time at {large}x{large} over {half}x{half}", "linear in pixels",
        "<= 4.4x, ViT " + ("more" if context.quick else ">= 8x"),
        [(OURS, half), (OURS, large), (FUSED, half), (FUSED, large)], grows,
    )  # fmt: skip
    bar(
        f"cost: faster than ViT-B/16 at {size}x{size}", "16x at 2048x2048, GPU", ">= 5x", [(OURS, size), (FUSED, size)],
        lambda ours, vit: (f"{vit.time / ours.time:.2f}x", vit.time / ours.time >= 5.0),
    )  # fmt: skip
    bar(
        f"cost: memory of ViT-B/16 with plain attention at {size}x{size}", "3 % at 2048x2048, GPU", "<= 25 %",
        [(OURS, size), (NAIVE, size)],
        lambda ours, vit: (f"{100 * ours.memory / vit.memory:.1f} %", ours.memory <= 0.25 * vit.memory),
    )  # fmt: skip
    allowed = MEMORY * (large / 2048) ** 2
    bar(
        f"cost: memory at {large}x{large}", "833 MB at 2048x2048, GPU", f"<= {allowed / 1e6:.0f} MB", [(OURS, large)],
        lambda ours: (f"{ours.memory / 1e6:.0f} MB", ours.memory <= allowed),
    )  # fmt: skip
    rate = parts.product_rate(threads)
    floor = counts("b", large, KEEP, released=True)[2] / rate
    bar(
        f"cost: time at {large}x{large} over that of its multiply-adds as one product", "", "<= 2.5x", [(OURS, large)],
        lambda ours: (f"{ours.time / floor:.2f}x ({rate / 1e9:.1f} GMAC/s)", ours.time <= 2.5 * floor),
    )  # fmt: skip
    bar(
        f"reduction: faster than without at {size}x{size}", "1.89x in MACs", ">= 1.6x", [(OURS, size), (WHOLE, size)],
        lambda ours, whole: (f"{whole.time / ours.time:.2f}x", whole.time >= 1.6 * ours.time),
    )  # fmt: skip
    bar(
        f"reduction: memory of that without at {size}x{size}", "", "<= 55 %", [(OURS, size), (WHOLE, size)],
        lambda ours, whole: (f"{100 * ours.memory / whole.memory:.1f} %", ours.memory <= 0.55 * whole.memory),
    )  # fmt: skip


# ---- quality --------------------------------------------------------------------------------------------------------

MINI = Config((24, 48, 96, 192), (1, 1, 2, 1))
TEXTURES = ("gravel.png", "grass.png", "brick.png", "retina.jpg", "hubble_deep_field.jpg")
"""Of scikit-image."""
CLASSES = 10
LEARNS = 50.0
"""Percent that the net without reduction must reach before selection is judged."""


@dataclass(frozen=True)
class Trial:
    size: int
    """Side of the scenes, px."""
    train: int
    test: int
    recipe: Recipe
    seeds: int


FULL = Trial(256, 8000, 1000, Recipe(steps=3000, batch=32, lr=2e-3, weight_decay=0.02, clip=1.0), 3)
QUICK = Trial(64, 512, 200, Recipe(steps=30, batch=32, lr=3e-3, weight_decay=0.02, clip=1.0), 1)


def shapes() -> list[np.ndarray[Any, Any]]:
    """Ten patterns of 5x5 cells, each unlike the others in eight cells at least."""
    random = np.random.default_rng(0)
    chosen: list[np.ndarray[Any, Any]] = []
    while len(chosen) < CLASSES:
        cells = random.random((5, 5)) < 0.5
        if 10 <= cells.sum() <= 15 and all((cells != other).sum() >= 8 for other in chosen):
            chosen.append(cells)
    return chosen


def scenes(amount: int, size: int, seed: int) -> tuple[Pictures, Tensor]:
    """Scenes, and the corners (top, left, side) of their targets."""
    random = np.random.default_rng([seed, size])
    grounds, patterns = [photo(name) for name in TEXTURES], shapes()
    images = np.empty((amount, size, size, 3), np.float32)
    labels, places = random.integers(0, CLASSES, amount), np.empty((amount, 3), np.int64)
    for image, label, place in zip(images, labels, places, strict=True):
        ground = grounds[random.integers(len(grounds))]
        top, left = (int(random.integers(0, side - size + 1)) for side in ground.shape[:2])
        image[:] = ground[top : top + size, left : left + size] / 255.0
        side = int(random.integers(10, 15))
        row, column = (int(v) for v in random.integers(0, size - side + 1, 2))
        cells = np.arange(side) * 5 // side
        mask = patterns[label][np.ix_(cells, cells)]
        image[row : row + side, column : column + side] = np.where(mask[..., None], (1.0, 0.9, 0.1), (0.1, 0.0, 0.4))
        place[:] = row, column, side
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Pictures((pixels - 0.45) / 0.25, torch.from_numpy(labels), CLASSES), torch.from_numpy(places)


class AnyTokens(TokenSelector):
    """As many tokens, at random."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        return torch.rand_like(scores).argsort(1)[:, :count]


def mini(trial: Trial, keep: tuple[int, ...], chance: bool = False) -> DynamicVis:
    net = DynamicVis(replace(MINI, keep=keep), CLASSES, image_size=trial.size)
    for block in net.modules():
        if chance and isinstance(block, SpatialSparseMixer) and block.selector is not None:
            block.selector = AnyTokens(block.selector.router.in_features, block.selector.reduction)
    return net


def recall(net: DynamicVis, pictures: Pictures, places: Tensor) -> float:
    """Share of the targets' tokens among those that the first stage selects."""
    seen: list[Tensor] = []
    selector = next(block for block in net.modules() if isinstance(block, TokenSelector))
    hook = selector.register_forward_hook(lambda _module, _inputs, output: seen.append(output.index))
    with torch.inference_mode():
        for part in torch.split(pictures.images, 50):
            net(part)
    hook.remove()
    chosen, side = torch.cat(seen), -(-pictures.images.shape[2] // 4)
    taken = torch.zeros(len(chosen), side * side).scatter_(1, chosen, 1.0).reshape(-1, side, side)
    hits = total = 0.0
    for image, (row, column, extent) in zip(taken, places.tolist(), strict=True):
        tokens = image[row // 4 : (row + extent - 1) // 4 + 1, column // 4 : (column + extent - 1) // 4 + 1]
        hits, total = hits + float(tokens.sum()), total + tokens.numel()
    return hits / total


def quality(evidence: Evidence, context: ProofContext) -> None:
    """Bar 4; refuses to judge selection by nets that do not learn."""
    trial = QUICK if context.quick else FULL
    train_on, _ = scenes(trial.train, trial.size, context.seed)
    test_on, places = scenes(trial.test, trial.size, context.seed + 1)

    def trained(seed: int, keep: tuple[int, ...], chance: bool = False) -> tuple[DynamicVis, float]:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            net = mini(trial, keep, chance)
        train(net, train_on, trial.recipe, seed=seed, progress=context.progress)
        return net, 100.0 * accuracy(net, test_on)

    whole = [trained(context.seed, OFF)[1]]
    learnt = whole[0] >= LEARNS
    evidence.bar(
        f"quality: scenes of {trial.size}x{trial.size} learnt without reduction", "", f">= {LEARNS:g} %",
        f"{whole[0]:.1f} %" + ("" if learnt else ": selection is not judged"), learnt,
    )  # fmt: skip
    if not learnt:
        evidence.notes.append(
            f"{trial.recipe.steps} steps of {trial.recipe.batch} do not suffice to judge selection: no claim is made"
        )
        return
    seeds = range(context.seed, context.seed + trial.seeds)
    whole += [trained(seed, OFF)[1] for seed in seeds[1:]]
    chosen = [trained(seed, KEEP) for seed in seeds]
    chance = [trained(seed, KEEP, chance=True)[1] for seed in seeds]
    ours = statistics.fmean(score for _, score in chosen)
    for name, paper, least, other in (
        ("no reduction", "no loss", -2.0, whole), ("a random selection", "better", 5.0, chance),
    ):  # fmt: skip
        points = ours - statistics.fmean(other)
        evidence.bar(
            f"quality: points over {name}", paper, f">= {least:g}",
            f"{points:+.1f} ({ours:.1f} %, {statistics.fmean(other):.1f} %, {trial.seeds} seeds)", points >= least,
        )  # fmt: skip
    found = statistics.fmean(recall(net, test_on, places) for net, _ in chosen)
    evidence.bar(
        "quality: targets' tokens among those selected in stage 1, over chance", "", ">= 3x", f"{found * KEEP[0]:.2f}x",
        found * KEEP[0] >= 3.0,
    )  # fmt: skip
