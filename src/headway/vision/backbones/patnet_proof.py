"""Proof of `patnet`: the released code's counts, exact re-parameterisation, speed and learning beside FasterNet.

Learning: a net of three stages on 26 letters of 24x24 pixels in 18 typefaces, tested on four others, against a
FasterNet-like one of more multiply-adds. Ablations are reported, not judged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.core.timm_library import timm_library
from headway.vision.backbones import proof_parts as parts
from headway.vision.backbones.patnet import CONFIGS, SYSTEM, Config, PATNet, Patnet
from headway.vision.backbones.patnet_mixers import ChannelGate, ChannelMixer, PixelMixer, filtered
from headway.vision.fold import fold
from headway.vision.train import Recipe

BASELINE = "FasterNet-T2 of timm, folded too, interleaved; a FasterNet-like net of more multiply-adds on letters"

COUNTS = {
    "t0": (3_486_160, 3_558_240, 230_768_768, 241_418_624),
    "t1": (5_985_552, 6_144_552, 513_771_296, 537_573_536),
    "t2": (12_269_816, 12_650_424, 1_025_211_392, 1_070_670_848),
    "s": (28_013_304, 28_975_704, 2_693_494_016, 2_817_190_400),
    "m": (59_179_000, 61_366_776, 6_658_095_104, 6_980_827_136),
    "l": (100_641_336, 104_465_336, 11_863_105_280, 12_447_404_800),
}
"""The released code's: parameters without and with PAT_sp, multiply-adds of layers without and with."""
PRINTED = {"t2": "12.6 M, 1.03 G merged", "s": "29.0 M, 2.71 G", "m": "61.3 M, 6.69 G", "l": "104 M, 11.9 G"}
FASTERNET = {"fasternet_t0": (3_905_500, 335_422_720), "fasternet_t2": (14_982_888, 1_904_334_848)}
SIZE = 224
OURS, RIVAL = "patnet-t2", parts.Rival("fasternet_t2", 224)
LETTERS = 24
RECIPE = Recipe(steps=180, batch=64, lr=3e-3, weight_decay=0.02)


def prove(context: ProofContext) -> Evidence:
    evidence = context.begin(SYSTEM.slug, context.threads or 2)
    structure(evidence, context)
    learning(evidence, context)
    speed(evidence, context)
    return evidence


def gate_macs(config: Config) -> int:
    """What PAT_sp costs once the rest of it is folded: half the channels on every pixel of every block."""
    maps = [(config.width * 2**i, (SIZE // (4 * 2**i)) ** 2) for i in range(len(config.depths))]
    return sum(depth * width // 2 * pixels for depth, (width, pixels) in zip(config.depths, maps, strict=True))


def structure(evidence: Evidence, context: ProofContext) -> None:
    """Bars 1 and 2."""
    names = ("parameters", "with sp", "layer MACs", "with sp", "folded")
    for variant, wanted in COUNTS.items():
        if context.quick and variant in ("m", "l"):
            continue
        plain = parts.counts_of(Patnet().variant(variant, spatial_attention=False), SIZE)
        net = parts.with_statistics(Patnet(), variant)
        spatial = parts.counts_of(net, SIZE)
        short = parts.exactness(evidence, net, SIZE, 5e-6, variant)
        merged = parts.counts_of(short, SIZE).layer_macs
        found = (plain.trainable, spatial.trainable, plain.layer_macs, spatial.layer_macs, merged)
        expected = (*wanted, wanted[2] + gate_macs(CONFIGS[variant]))
        labels = [f"{name} [{index}]" for index, name in enumerate(names)]
        parts.counted(
            evidence, variant, PRINTED.get(variant, ""),
            dict(zip(labels, expected, strict=True)), dict(zip(labels, found, strict=True)),
        )  # fmt: skip
    for name, (parameters, macs) in FASTERNET.items():
        counts = parts.counts_of(timm_library().create_model(name), SIZE)
        parts.counted(
            evidence, f"{name} of timm, same counter", "", {"parameters": parameters, "layer MACs": macs},
            {"parameters": counts.trainable, "layer MACs": counts.layer_macs},
        )  # fmt: skip


def speed(evidence: Evidence, context: ProofContext) -> None:
    """Bar 3, with one thread and with two."""
    nets = {OURS: (fold(parts.with_statistics(Patnet(), "t2")), SIZE), RIVAL.name: (RIVAL.network(), SIZE)}
    macs = {name: parts.counts_of(net, SIZE).macs for name, (net, _) in nets.items()}
    share = macs[OURS] / macs[RIVAL.name]
    for threads in (1, 2):
        for batch in (1, 32):
            rounds = (3 if batch > 1 else 5) if context.quick else (15 if batch > 1 else 30)
            timing = parts.side_by_side(evidence, context, nets, batch, threads, rounds)
            faster = parts.gain(timing, OURS, RIVAL.name)
            rates = ", ".join(parts.rate(timing, name, batch, macs[name]) for name in nets)
            where = f"batch {batch}, {threads} threads"
            if batch == 1:
                below = 1.0 - 1.0 / faster
                evidence.bar(
                    f"speed: latency of T2 below FasterNet-T2's, {where}", "24 %", ">= 24%",
                    f"{100 * below:.0f}%, {100 * below / (1 - share):.0f}% of what the MACs allow ({rates})",
                    below >= 0.24,
                )  # fmt: skip
            else:
                evidence.bar(
                    f"speed: throughput of T2 over FasterNet-T2's, {where}", "1.25x (GPU)", ">= 1.25x",
                    f"{faster:.2f}x ({rates})", faster >= 1.25,
                )  # fmt: skip


# ---- learning -------------------------------------------------------------------------------------------------------


class Partial(nn.Module):
    """FasterNet's mixing: the first channels are convolved, the others stay (Chen et al. 2023)."""

    own_residual = False

    def __init__(self, channels: int, n_div: int, heads: int) -> None:
        super().__init__()
        self.filter, rest = filtered(channels, n_div)
        self.parts = [channels - rest, rest]

    def forward(self, x: Tensor) -> Tensor:
        seen, rest = torch.split(x, self.parts, 1)
        return torch.cat([self.filter(seen), rest], 1)


class MeanGate(ChannelGate):
    """Gates that see means only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.hardsigmoid(self.norm(self.conv(x.mean((2, 3), keepdim=True))))


class MeanMixer(ChannelMixer):
    def __init__(self, channels: int, n_div: int, heads: int = 0) -> None:
        super().__init__(channels, n_div)
        self.gate = MeanGate(self.parts[1])


def mini(width: int = 24, spatial: bool = True, mixers: tuple[type[nn.Module], ...] | None = None) -> nn.Module:
    config = Config(width, (1, 2, 2), stem=(3, 2), head=128)
    return PATNet(config, 26, 1, spatial, heads=3, mixers=mixers or (ChannelMixer, ChannelMixer, PixelMixer))


def learning(evidence: Evidence, context: ProofContext) -> None:
    """Bar 4."""
    ours, control = "PAT", "FasterNet-like C 28"
    makers = {ours: mini, control: lambda: mini(28, False, (Partial,))}
    reported = {
        "FasterNet-like C 24": lambda: mini(24, False, (Partial,)),
        "PAT, means only": lambda: mini(24, True, (MeanMixer, MeanMixer, PixelMixer)),
        "PAT without sp": lambda: mini(24, False),
        "PAT with channel gates in the last stage": lambda: mini(24, True, (ChannelMixer,)),
    }
    if not context.quick:
        makers |= reported
    scores = parts.learn(context, makers, LETTERS, RECIPE, 1 if context.quick else 3)
    parts.beats(evidence, scores, ours, control, 3, 6, "")
    macs = {name: parts.counts_of(make(), LETTERS, 1).layer_macs for name, make in makers.items()}
    evidence.notes.append(
        "letters, multiply-adds and accuracy: "
        + "; ".join(f"{name} {macs[name] / 1e6:.2f} M, {score.text()} %" for name, score in scores.items())
        + f"; {RECIPE.steps} steps"
    )
    x = torch.randn(64, 1, LETTERS, LETTERS)
    nets = {name: makers[name]().eval() for name in (ours, control)}
    timing = parts.timed(context, {name: (lambda net=net: net(x)) for name, net in nets.items()}, 15)
    evidence.notes.append(f"PAT, not folded, at {parts.gain(timing, ours, control):.2f}x the control's images/s")
