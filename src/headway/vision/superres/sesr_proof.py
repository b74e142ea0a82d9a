"""Proof of `sesr`: the collapse is exact, the published counts, a training step that costs a fraction, quality, tiles.

Quality: M5 doubles four photographs of scikit-image after training on eight others; PSNR of luma above bicubic's,
planes kept in float, 4 pixels of border left out. The rival is the same network of plain convolutions at its best rate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.cache import StepCache
from headway.core.evidence import Evidence
from headway.core.measure import compare
from headway.core.proof import ProofContext
from headway.core.threads import on_threads
from headway.vision.count import count
from headway.vision.fold import fold, relative_error
from headway.vision.superres.linear_block import LinearBlock, delta_of
from headway.vision.superres.network import CONFIGS, SESR
from headway.vision.superres.photos import pairs
from headway.vision.superres.quantised import quantised
from headway.vision.superres.sesr import SYSTEM
from headway.vision.superres.tiles import Tiled
from headway.vision.superres.training import Recipe, gains, trained

BASELINE = "the same network trained as it is written, with two convolutions for one, interleaved"

COUNTS = {
    "m3": (8_912, "2.05 G", 13_712, "0.79 G"),
    "m5": (13_520, "3.11 G", 18_320, "1.05 G"),
    "m7": (18_128, "4.17 G", 22_928, "1.32 G"),
    "m11": (27_344, "6.30 G", 32_144, "1.85 G"),
    "xl": (105_376, "24.27 G", 114_976, "6.62 G"),
}
"""Weights of convolutions and printed multiply-adds for 1280x720 pixels of output, x2 then x4."""


def prove(context: ProofContext) -> Evidence:
    evidence = context.begin(SYSTEM.slug, context.threads or 1)
    with on_threads(context.threads or 1):
        exactness(evidence)
        counts(evidence)
        training_step(evidence, context)
        doubled = quality(evidence, context)
        deployment(evidence, context, doubled)
    return evidence


# ---- bar 1 ----------------------------------------------------------------------------------------------------------


def drawn(variant: str, scale: int, seed: int = 0) -> SESR:
    """A variant with slopes that differ by channel."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        net = SESR(CONFIGS[variant], scale)
        for activation in net.activations:
            nn.init.uniform_(activation.weight, -0.5, 0.5)
        return net


def exactness(evidence: Evidence) -> None:
    """Pictures of 24x20 pixels, so that every output is near a border."""
    random = torch.Generator().manual_seed(0)
    outputs, gradients, steps = [], [], []
    for scale in (2, 4):
        for variant in CONFIGS:
            short = drawn(variant, scale).train()
            long = copy.deepcopy(short).expanded()
            x = torch.rand(2, 1, 24, 20, generator=random)
            with torch.no_grad():
                wanted = long(x)
                outputs += [float((net(x) - wanted).abs().max()) for net in (short, fold(short).train())]
            gradients.append(compared(short, long, x, torch.rand(wanted.shape, generator=random)))
            pairs = zip(short.parameters(), long.parameters(), strict=True)
            steps.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
    evidence.bar(
        "exact: ten networks, expanded against collapsed and folded, borders included", "exact", "<= 1e-5",
        f"{max(outputs):.1e}", max(outputs) <= 1e-5,
    )  # fmt: skip
    evidence.bar(
        "exact: gradients to both convolutions of every block", "exact", "<= 1e-4 relative",
        f"{max(gradients):.1e}", max(gradients) <= 1e-4,
    )  # fmt: skip
    evidence.bar(
        "exact: weights after one step from the same state", "exact", "<= 1e-6", f"{max(steps):.1e}", max(steps) <= 1e-6
    )


def compared(short: SESR, long: SESR, x: Tensor, y: Tensor) -> float:
    """One step of gradient descent in each form; the largest relative difference of a gradient."""
    for net in (short, long):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
        F.l1_loss(net(x), y).backward()
        optimizer.step()
    pairs = zip(short.parameters(), long.parameters(), strict=True)
    return max(relative_error(b.grad, a.grad) for a, b in pairs if a.grad is not None and b.grad is not None)


# ---- bar 2 ----------------------------------------------------------------------------------------------------------


def counts(evidence: Evidence) -> None:
    for variant, row in COUNTS.items():
        for scale, weights, printed in ((2, *row[:2]), (4, *row[2:])):
            short = fold(SESR(CONFIGS[variant], scale)).to("meta")
            macs = count(short, torch.zeros(1, 1, 720 // scale, 1280 // scale, device="meta")).macs
            found = sum(child.weight.numel() for child in short.modules() if isinstance(child, nn.Conv2d))
            exact = weights * (720 // scale) * (1280 // scale)
            evidence.bar(
                f"counts: {variant} x{scale}", f"{weights:,} weights, {printed} MACs",
                f"{weights:,} and {exact:,}, the printed digits", f"{found:,} and {macs:,}",
                (found, macs) == (weights, exact) and abs(macs / 1e9 - float(printed.split()[0])) < 0.01,
            )  # fmt: skip
    wide, narrow, collapse = step_macs()
    evidence.bar(
        "counts: a forward pass of M5, batch 32 of 64x64, expanded", "41.77 G (released code)", "41,775,267,840",
        f"{wide:,}", wide == 32 * 4096 * 318_720,
    )  # fmt: skip
    evidence.bar(
        "counts: the same collapsed, collapse included", "1.84 G (released code)", "1,843,216,640",
        f"{narrow + collapse:,}", narrow + collapse == 32 * 4096 * 13_520 + 71_123_200,
    )  # fmt: skip


def step_macs() -> tuple[int, int, int]:
    """Multiply-adds of M5's forward pass on 32 pictures of 64x64: expanded, collapsed, and the released collapse."""
    net = SESR(CONFIGS["m5"])
    batch = torch.zeros(32, 1, 64, 64, device="meta")
    blocks = [child for child in net.modules() if isinstance(child, LinearBlock)]
    collapse = sum(count(nn.Sequential(b.expand, b.project), delta_of(b)).macs for b in blocks)
    narrow = count(fold(net).to("meta"), batch).macs
    return count(net.expanded().to("meta"), batch).macs, narrow, collapse


# ---- bar 3 ----------------------------------------------------------------------------------------------------------

FASTER = 6.0


def training_step(evidence: Evidence, context: ProofContext) -> None:
    """Forward and backward of M5, batch 32 of 64x64, and the step of Adam, in both forms."""
    x, y = torch.rand(32, 1, 64, 64), torch.rand(32, 1, 128, 128)
    net = drawn("m5", 2).train()
    arms = {"collapsed": stepping(net, x, y), "expanded": stepping(copy.deepcopy(net).expanded(), x, y)}
    rounds = 3 if context.quick else 8
    with context.progress.task("steps of training", rounds):
        timing = compare(arms, rounds=rounds, min_time_s=0.0, warmup=1, seed=context.seed)
    evidence.add_timing("a training step of M5, batch 32 of 64x64", timing)
    faster = timing.comparison("expanded").ratio
    evidence.bar(
        "speed: a training step, expanded over collapsed", "22.7x fewer multiply-adds forward", f">= {FASTER:g}x",
        f"{faster.value:.1f}x [{faster.low:.1f}, {faster.high:.1f}]", faster.value >= FASTER,
    )  # fmt: skip


def stepping(net: SESR, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, amsgrad=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.l1_loss(net(x), y).backward()
        optimizer.step()

    return step


# ---- bar 4 ----------------------------------------------------------------------------------------------------------

LEARNED = Recipe()
RATES = (5e-4, 1e-3, 2e-3)
"""Of which the plain network takes its best."""
MEAN, LEAST, OVER_PLAIN = 1.2, 0.7, 0.15


def quality(evidence: Evidence, context: ProofContext) -> SESR:
    """Gives the network of the first seed. `quick`: one seed, and the plain network at one rate."""
    cache, seeds = StepCache(), range(context.seed, context.seed + (1 if context.quick else 3))
    rates = RATES[1:2] if context.quick else RATES
    held = pairs("heldout", 2)

    def above(seed: int, recipe: Recipe, linear: bool) -> list[float]:
        net = trained("m5", 2, recipe, seed=seed, linear=linear, cache=cache, progress=context.progress)
        return [ours - bicubic for ours, bicubic in gains(net, held, 2)]

    wide = {seed: above(seed, LEARNED, True) for seed in seeds}
    plain = {rate: [fmean(above(seed, replace(LEARNED, lr=rate), False)) for seed in seeds] for rate in rates}
    mean = fmean(fmean(found) for found in wide.values())
    least = min(min(found) for found in wide.values())
    each = ", ".join(f"{fmean(found):+.2f}" for found in wide.values())
    steps = f"{LEARNED.steps} steps"
    evidence.bar(
        f"quality: M5 x2 above bicubic on held-out photographs, mean, {steps}", "35.20 dB on DIV2K (480,000 steps)",
        f">= {MEAN:+g} dB, goal +1.7 with 8,000 steps", f"{mean:+.2f} dB ({each})", mean >= MEAN,
    )  # fmt: skip
    evidence.bar(
        "quality: M5 x2 above bicubic, the least of all photographs and seeds", "", f">= {LEAST:+g} dB",
        f"{least:+.2f} dB", least >= LEAST,
    )  # fmt: skip
    best = max(rates, key=lambda rate: fmean(plain[rate]))
    told = "; ".join(f"{rate:g}: {', '.join(f'{value:+.2f}' for value in found)}" for rate, found in plain.items())
    over = mean - fmean(plain[best])
    evidence.bar(
        f"quality: over the same network of plain convolutions, best of {len(rates)} rates", "better",
        f">= {OVER_PLAIN:+g} dB, goal +0.4", f"{over:+.2f} dB ({told})", over >= OVER_PLAIN,
    )  # fmt: skip
    return trained("m5", 2, LEARNED, seed=context.seed, cache=cache)


# ---- bar 5 ----------------------------------------------------------------------------------------------------------

LOST, TILED_FASTER = 0.25, 1.5
FRAME = (540, 960)


def deployment(evidence: Evidence, context: ProofContext, network: SESR) -> None:
    """Tiles and 8 bits, on the network that quality was measured of."""
    held = pairs("heldout", 2)
    short = quantised("m5", 2, LEARNED, seed=context.seed, progress=context.progress)
    floats, integers = ((fold(net), Tiled(fold(net), 100)) for net in (network, short))
    errors, equal = [], []
    with torch.no_grad():
        for pair in held:
            x = pair.small[None, None]
            errors.append(float((floats[1](x) - floats[0](x)).abs().max()))
            equal.append(torch.equal(integers[1](x), integers[0](x)))
    evidence.bar(
        "exact: tiles against the whole photograph, float32", "", "<= 1e-6", f"{max(errors):.1e}", max(errors) <= 1e-6
    )
    evidence.bar(
        "exact: tiles against the whole photograph, 8 bits", "", "all bits equal",
        f"{sum(equal)} of {len(equal)} equal", all(equal),
    )  # fmt: skip
    lost = fmean(ours for ours, _ in gains(network, held, 2)) - fmean(ours for ours, _ in gains(short, held, 2))
    evidence.bar(
        "quality: what 8 bits lose after training with them", "0.20 dB (35.20 to 35.00)", f"<= {LOST:g} dB",
        f"{lost:.2f} dB", lost <= LOST,
    )  # fmt: skip
    x = torch.rand(1, 1, *FRAME)
    nets = {
        "tiled": Tiled(fold(network)),
        "layer by layer": fold(network),
        "layer by layer, channels last": fold(network),
    }
    nets["layer by layer, channels last"].to(memory_format=torch.channels_last)
    arms = {name: quietly(net, x) for name, net in nets.items()}
    rounds = 5 if context.quick else 15
    with context.progress.task("540p to 1080p", rounds):
        timing = compare(arms, rounds=rounds, min_time_s=0.0, baseline="tiled", seed=context.seed)
    evidence.add_timing("540p to 1080p", timing)
    faster, last = (timing.comparison(name).ratio.value for name in list(nets)[1:])
    evidence.bar(
        "speed: 540p to 1080p in tiles over layer by layer, torch's own layout", "",
        f">= {TILED_FASTER:g}x", f"{faster:.2f}x ({last:.2f}x of channels last)", faster >= TILED_FASTER,
    )  # fmt: skip


def quietly(net: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return net(x)

    return run
