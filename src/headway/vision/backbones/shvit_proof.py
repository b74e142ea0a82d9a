"""Proof of `shvit`: published counts, exact folding, speed beside MobileViTv2-1.0, and attention that costs nothing.

Weights are untrained, which suffices for counts and timings; ImageNet accuracies are quoted, not measured.

Learning: a net of three stages on 26 letters of 40x40 pixels in 18 typefaces, tested on four others. Its maps are 10,
5 and 3 pixels wide, where attention has little to add: the bar is that one head on some channels is no worse than none
and than four heads on all, and faster than those; the paper's order is the goal.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.vision.backbones import proof_parts as parts
from headway.vision.backbones.shvit import (
    CONFIGS,
    QUERY,
    SYSTEM,
    Config,
    Mixer,
    SHViT,
    Shvit,
    SingleHeadAttention,
)
from headway.vision.blocks import ConvNorm
from headway.vision.train import Recipe

BASELINE = "MobileViTv2-1.0 of timm at 256x256, folded too, in its best layout of memory, interleaved"

COUNTS = {
    "s1": (6_330_808, 6_308_660, 240_598_592, 722_176),
    "s2": (11_483_072, 11_453_508, 364_464_008, 930_888),
    "s3": (14_245_273, 14_210_010, 599_334_349, 1_235_815),
    "s4": (16_588_484, 16_546_248, 983_521_792, 2_695_168),
}
"""The released code's: parameters, parameters when folded, multiply-adds of layers and of attention."""
PRINTED = {"s1": (6.3, 241), "s2": (11.4, 366), "s3": (14.2, 601), "s4": (16.5, 986)}
"""Table 2 of the paper: millions of folded parameters, cut off, and of multiply-adds, which its tool rounds up."""
RIVAL = parts.Rival("mobilevitv2_100", 256)
FASTER = 3.5


def prove(context: ProofContext) -> Evidence:
    evidence = context.begin(SYSTEM.slug, context.threads or 1)
    structure(evidence)
    learning(evidence, context)
    speed(evidence, context)
    return evidence


def structure(evidence: Evidence) -> None:
    """Bars 1 and 2."""
    names = ("parameters", "folded", "layer MACs", "attention MACs")
    printed = []
    for variant, wanted in COUNTS.items():
        size = CONFIGS[variant].image_size
        net = parts.with_statistics(Shvit(), variant)
        counts = parts.counts_of(net, size)
        short = parts.exactness(evidence, net, size, 2e-6, variant)
        folded = sum(value.numel() for value in short.parameters())
        found = (counts.trainable, folded, counts.layer_macs, counts.attention_macs)
        millions, macs = PRINTED[variant]
        parts.counted(
            evidence, variant, f"{millions} M, {macs} M MACs",
            dict(zip(names, wanted, strict=True)), dict(zip(names, found, strict=True)),
        )  # fmt: skip
        printed.append(int(folded / 1e5) / 10 == millions and abs(counts.macs / 1e6 - macs) <= 1)
    evidence.bar(
        "counts: the paper's printed values", "table 2", "4 of 4", f"{sum(printed)} of {len(printed)}", all(printed)
    )


def speed(evidence: Evidence, context: ProofContext) -> None:
    """Bar 3; other batches and two threads are reported."""
    ours = parts.fold(parts.with_statistics(Shvit(), "s4"))
    nets = {"shvit-s4": (ours, 256), RIVAL.name: (RIVAL.network(), RIVAL.size)}
    macs = {name: parts.counts_of(net, size).layer_macs for name, (net, size) in nets.items()}
    told = []
    for threads in (1, 2):
        for batch in (1, 16):
            rounds = 3 if context.quick else 15 if batch > 1 else 30
            timing = parts.side_by_side(evidence, context, nets, batch, threads, rounds)
            faster = parts.gain(timing, "shvit-s4", RIVAL.name)
            rates = ", ".join(parts.rate(timing, name, batch, macs[name]) for name in nets)
            if (batch, threads) == (16, 1):
                evidence.bar(
                    "speed: S4 over MobileViTv2-1.0, batch 16, one thread", "8.1x (ONNX Runtime, Xeon)",
                    f">= {FASTER}x", f"{faster:.2f}x ({rates})", faster >= FASTER,
                )  # fmt: skip
            told.append(f"batch {batch}, {threads} threads: {faster:.2f}x ({rates})")
    evidence.notes += told


# ---- learning -------------------------------------------------------------------------------------------------------

LETTERS = 40
MINI = Config((48, 96, 128), (1, 2, 2), (0, 21, 27), stem=(24, 48), squeeze=False)
RECIPE = Recipe(steps=130, batch=64, lr=3e-3, weight_decay=0.02)
SINGLE, NONE, FOUR, OUTSIDE = "one head", "no attention", "four heads on all channels", "other channels not projected"


class FourHeads(nn.Module):
    """Attention with four heads of `QUERY` channels for queries and keys, on all channels."""

    def __init__(self, channels: int, part: int) -> None:
        super().__init__()
        self.pre_norm = nn.GroupNorm(1, channels)
        self.parts = [4 * QUERY, 4 * QUERY, channels]
        self.qkv = ConvNorm(channels, sum(self.parts))
        self.project = ConvNorm(channels, channels, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        split = torch.split(self.qkv(self.pre_norm(x)), self.parts, 1)
        q, k, v = (t.unflatten(1, (4, -1)).flatten(3) for t in split)  # (n, 4, channels of a head, pixels)
        weights = torch.softmax((q * QUERY**-0.5).mT @ k, -1)
        return self.project(torch.relu((v @ weights.mT).flatten(1, 2).reshape(x.shape)))


class Outside(nn.Module):
    """One head on some channels, and the others left out of the projection."""

    def __init__(self, channels: int, part: int) -> None:
        super().__init__()
        self.parts = [part, channels - part]
        self.attention = SingleHeadAttention(part, part)

    def forward(self, x: Tensor) -> Tensor:
        seen, rest = torch.split(x, self.parts, 1)
        return torch.cat([self.attention(seen), torch.zeros_like(rest)], 1)


def mini(mixer: Mixer = SingleHeadAttention, attention: bool = True) -> nn.Module:
    return SHViT(MINI if attention else replace(MINI, partial=(0, 0, 0)), 26, 1, mixer=mixer)


def learning(evidence: Evidence, context: ProofContext) -> None:
    """Bar 4."""
    makers = {
        SINGLE: mini,
        NONE: lambda: mini(attention=False),
        FOUR: lambda: mini(FourHeads),
        OUTSIDE: lambda: mini(Outside),
    }
    scores = parts.learn(context, makers, LETTERS, RECIPE, 1 if context.quick else 3)
    for other, goal in ((NONE, "above it by more than the error"), (FOUR, "within 0.5")):
        points, error = scores[SINGLE].over(scores[other])
        evidence.bar(
            f"learning: {SINGLE} against {other}, points on unseen typefaces", "better at higher speed (section 3.2)",
            f">= -2, goal {goal}",
            f"{points:+.1f} +- {error:.1f} ({scores[SINGLE].text()}; {scores[other].text()})", points >= -2.0,
        )  # fmt: skip
    x = torch.randn(64, 1, LETTERS, LETTERS)
    nets = {name: makers[name]().eval() for name in (SINGLE, FOUR)}
    timing = parts.timed(context, {name: (lambda net=net: net(x)) for name, net in nets.items()}, 30)
    faster, noise = parts.gain(timing, SINGLE, FOUR), timing.noise_floor or 0.0
    evidence.bar(
        f"speed: {SINGLE} over {FOUR}, images/s, not folded", "", "over the noise, goal 1.2x",
        f"{faster:.2f}x, noise {100 * noise:.1f}%", faster - 1.0 > noise,
    )  # fmt: skip
    macs = {name: parts.counts_of(make(), LETTERS, 1).layer_macs for name, make in makers.items()}
    evidence.notes.append(
        "letters, multiply-adds and accuracy: "
        + "; ".join(f"{name} {macs[name] / 1e6:.2f} M, {score.text()} %" for name, score in scores.items())
        + f"; {RECIPE.steps} steps"
    )
