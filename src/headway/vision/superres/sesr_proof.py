"""Proof of `sesr`: the collapse is exact, the published counts, and a training step that costs a fraction."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.measure import compare
from headway.core.proof import ProofContext
from headway.vision.count import count
from headway.vision.fold import fold, relative_error
from headway.vision.superres.linear_block import LinearBlock, delta_of
from headway.vision.superres.network import CONFIGS, SESR
from headway.vision.superres.sesr import SYSTEM

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
    before = torch.get_num_threads()
    torch.set_num_threads(context.threads or 1)
    try:
        exactness(evidence)
        counts(evidence)
        training_step(evidence, context)
    finally:
        torch.set_num_threads(before)
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
