"""Proof of `shvit`: published counts, exact folding, and speed beside MobileViTv2-1.0.

Weights are untrained, which suffices for counts and timings; ImageNet accuracies are quoted, not measured.
"""

from __future__ import annotations

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.vision.backbones import proof_parts as parts
from headway.vision.backbones.shvit import CONFIGS, SYSTEM, Shvit
from headway.vision.count import count

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
    speed(evidence, context)
    return evidence


def structure(evidence: Evidence) -> None:
    """Bars 1 and 2."""
    names = ("parameters", "folded", "layer MACs", "attention MACs")
    printed = []
    for variant, wanted in COUNTS.items():
        size = CONFIGS[variant].image_size
        net = parts.with_statistics(Shvit(), variant)
        counts = count(net, parts.picture(size))
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
    macs = {name: parts.layer_macs(net, size) for name, (net, size) in nets.items()}
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
