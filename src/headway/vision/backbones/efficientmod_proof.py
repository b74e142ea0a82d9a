"""Proof of `efficientmod`: published counts, exact fusion, speed beside its rivals, and a block that learns.

Learning: a net of three stages on 26 letters of 20x20 pixels in 18 typefaces, tested on four others; against the same
net with the product replaced by a sum, and without the context. 200 steps show the block's product, not the paper's
order against MobileNetV2, which is reported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.vision.backbones import proof_parts as parts
from headway.vision.backbones.efficientmod import SYSTEM, Config, EfficientMod, EfficientModFamily, Modulation
from headway.vision.blocks import ConvNorm
from headway.vision.fold import fold, relative_error
from headway.vision.train import Recipe

BASELINE = "the plain network, EfficientFormerV2-S2 and MobileViTv2-1.0 of timm, folded, interleaved; the block's parts"

COUNTS = {
    "xxs": (4_736_264, 81_460_736, 475_523_072, 22_127_616),
    "xs": (6_627_544, 92_791_104, 617_151_744, 63_155_904),
    "s": (12_897_184, 108_836_448, 1_208_637_888, 84_668_864),
    "s_conv": (12_872_336, 149_797_312, 1_321_001_408, 0),
}
"""The released code's: parameters; multiply-adds of convolutions, linear layers and attention."""
PRINTED = {"xxs": "4.7 M, 0.6 G MACs", "xs": "6.6 M, 0.8 G", "s": "12.9 M, 1.4 G", "s_conv": "12.9 M, 1.5 G"}
SIZE = 224
FUSED, PLAIN = "efficientmod-s", "plain torch"
RIVALS = (parts.Rival("efficientformerv2_s2", 224), parts.Rival("mobilevitv2_100", 256))
LETTERS = 20
MINI = Config((16, 32, 64), (2, 2, 2), (0, 0, 0), ratios=(1, 4), stem=(3, 2))
RECIPE = Recipe(steps=200, batch=64, lr=3e-3, weight_decay=0.02)


def prove(context: ProofContext) -> Evidence:
    evidence = context.begin(SYSTEM.slug, context.threads or 2)
    structure(evidence)
    learning(evidence, context)
    speed(evidence, context)
    return evidence


def structure(evidence: Evidence) -> None:
    """Bars 1 and 2."""
    names = ("parameters", "conv MACs", "linear MACs", "attention MACs")
    for variant, wanted in COUNTS.items():
        net = parts.with_statistics(EfficientModFamily(), variant)
        counts = parts.counts_of(net, SIZE)
        found = (counts.trainable, counts.conv_macs, counts.linear_macs, counts.attention_macs)
        parts.counted(
            evidence, variant, PRINTED[variant],
            dict(zip(names, wanted, strict=True)), dict(zip(names, found, strict=True)),
        )  # fmt: skip
        short = parts.exactness(evidence, net, SIZE, 2e-5, variant)
        if variant == "xxs":
            x = parts.picture(SIZE, 2)
            with torch.no_grad():
                error = relative_error(net(x), short.bfloat16()(x.bfloat16()))
            evidence.bar("exact: xxs fused in bfloat16", "", "<= 2e-02", f"{error:.1e}", error <= 2e-2)


def speed(evidence: Evidence, context: ProofContext) -> None:
    """Bar 3, with two threads."""
    threads = evidence.threads
    plain = parts.with_statistics(EfficientModFamily(), "s")
    nets = {FUSED: (fold(plain), SIZE), PLAIN: (plain, SIZE)}
    nets |= {rival.name: (rival.network(), rival.size) for rival in RIVALS}
    macs = {name: parts.counts_of(net, size).macs for name, (net, size) in nets.items()}
    one = parts.side_by_side(evidence, context, nets, 1, threads, 5 if context.quick else 30)
    rates = {name: parts.rate(one, name, 1, macs[name]) for name in nets}
    against = (PLAIN, "", 1.5), (RIVALS[0].name, "1.25x (P100 GPU)", 1.25)
    for name, paper, bar in against:
        faster = parts.gain(one, FUSED, name)
        evidence.bar(
            f"speed: s over {name}, batch 1, {threads} threads", paper, f">= {bar}x",
            f"{faster:.2f}x ({rates[FUSED]}; {rates[name]})", faster >= bar,
        )  # fmt: skip
    many = parts.side_by_side(evidence, context, nets, 16, threads, 3 if context.quick else 30)
    peak = parts.product_rate(threads)
    share = 16 * macs[FUSED] / many.median_s(FUSED) / peak
    evidence.bar(
        f"speed: share of the rate of a product of matrices, batch 16, {threads} threads", "", ">= 45%",
        f"{100 * share:.0f}% of {peak / 1e9:.0f} GMAC/s ({parts.rate(many, FUSED, 16, macs[FUSED])})", share >= 0.45,
    )  # fmt: skip
    evidence.notes += [
        f"batch 1: {'; '.join(rates.values())}",
        f"batch 16: {'; '.join(parts.rate(many, name, 16, macs[name]) for name in nets)}",
        f"floor of s at batch 1: {1e3 * macs[FUSED] / peak:.1f} ms at the rate of the product",
    ]


# ---- learning -------------------------------------------------------------------------------------------------------


class Sum(Modulation):
    """The context added instead of multiplied: as many multiply-adds."""

    def mix(self, value: Tensor, context: Tensor) -> Tensor:
        return (value.unflatten(-1, (self.ratio, -1)) + context.unsqueeze(-2)).flatten(-2)


class NoContext(Modulation):
    """An MLP, and nothing that sees a neighbour."""

    def __init__(self, *arguments: int, **named: float) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.context = nn.Identity()  # type: ignore[assignment]

    def mix(self, value: Tensor, context: Tensor) -> Tensor:
        return value


class Inverted(nn.Module):
    """MobileNetV2's block (Sandler et al. 2018)."""

    def __init__(self, inside: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.steps = nn.Sequential(
            ConvNorm(inside, wide), nn.ReLU6(), ConvNorm(wide, wide, 3, stride, wide), nn.ReLU6(), ConvNorm(wide, out)
        )
        self.residual = stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.steps(x)
        return x + y if self.residual else y


def mobilenet(expansion: int = 5) -> nn.Module:
    """The same widths and depths."""
    layers: list[nn.Module] = [ConvNorm(1, MINI.widths[0], 3, 2), nn.ReLU6()]
    inside = MINI.widths[0]
    for index, (width, depth) in enumerate(zip(MINI.widths, MINI.depths, strict=True)):
        for step in range(depth):
            layers.append(Inverted(inside, width, 2 if index and not step else 1, expansion))
            inside = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 26))


def mini(block: type[Modulation] = Modulation) -> nn.Module:
    return EfficientMod(MINI, 26, 1, layer_scale=1.0, block=block)


def learning(evidence: Evidence, context: ProofContext) -> None:
    """Bar 4."""
    makers = {
        "modulation": mini,
        "sum": lambda: mini(Sum),
        "no context": lambda: mini(NoContext),
        "MobileNetV2": mobilenet,
    }
    scores = parts.learn(context, makers, LETTERS, RECIPE, 1 if context.quick else 3)
    parts.beats(evidence, scores, "modulation", "sum", 5, 8, "")
    parts.beats(evidence, scores, "modulation", "no context", 8, 12, "")
    macs = {name: parts.counts_of(make(), LETTERS, 1).layer_macs for name, make in makers.items()}
    evidence.notes.append(
        "letters, multiply-adds and accuracy: "
        + "; ".join(f"{name} {macs[name] / 1e6:.2f} M, {score.text()} %" for name, score in scores.items())
        + f"; {RECIPE.steps} steps; the paper's order against MobileNetV2 is no bar at this length"
    )
