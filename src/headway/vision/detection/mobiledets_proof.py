"""Proof of `mobiledets`: published counts, exact folding, boxes, and a detector that learns; where dense layers pay.

COCO's accuracies and the phones' latencies are quoted, not measured. The search itself is not part of the system yet:
the card's bars on its cost model, its targets and the networks it derives are not judged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headway.core.evidence import Evidence
from headway.core.measure import compare
from headway.core.proof import ProofContext
from headway.core.threads import on_threads
from headway.vision.count import count
from headway.vision.detection.blocks import BlockSpec
from headway.vision.detection.boxes import anchors, decode, encode, iou
from headway.vision.detection.detections import LEAST_SCORE, MOST, OVERLAP, suppress
from headway.vision.detection.mobiledets import SYSTEM
from headway.vision.detection.nets import NETS, NetSpec, SSDLite, map_sizes
from headway.vision.detection.scenes import ALPHABET, letter_scenes
from headway.vision.detection.train import precision_of, train_detector
from headway.vision.fold import fold, randomise_norms, relative_error
from headway.vision.train import Recipe

BASELINE = "inverted bottlenecks of the same expansion, beside the blocks with regular convolutions, interleaved"

COUNTS = {
    "cpu": (3_006_440, 408_006_272, 4_165_055, 4_205_423, 444_227_776),
    "dsp": (5_839_952, 2_763_353_600, 7_102_079, 7_159_343, 2_816_403_904),
    "edgetpu": (2_777_040, 1_473_795_200, 4_146_543, 4_196_095, 1_533_181_504),
    "gpu": (11_689_920, 5_009_920_000, 13_069_247, 13_109_151, 5_073_184_704),
}
"""The released code's: backbone's parameters and multiply-adds, detector's trainable and stored values and its own."""
PRINTED = {
    "cpu": "4.21 M, 0.45 G", "dsp": "7.16 M, 2.82 G", "edgetpu": "4.20 M, 1.53 G", "gpu": "13.11 M, 5.07 G",
}  # fmt: skip
"""Stored values and multiply-adds; with element-wise products for the CPU's network."""
NOT_JUDGED = (
    "not judged, since the search (TuNAS) is not built: the cost model's R2 and error (bar 2), latency and quality of"
    " derived networks (bar 3), the best of the full space against the best of inverted bottlenecks alone (bar 4)"
)


def prove(context: ProofContext) -> Evidence:
    evidence = context.begin(SYSTEM.slug, context.threads or 1)
    with on_threads(context.threads or 1):
        counts(evidence)
        exactness(evidence)
        boxes(evidence, context)
        learning(evidence, context)
        blocks(evidence, context)
    evidence.notes.append(NOT_JUDGED)
    return evidence


# ---- bar 1 ----------------------------------------------------------------------------------------------------------


def drawn(spec: NetSpec, classes: int = 90, seed: int = 0) -> SSDLite:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return SSDLite(spec, classes)


def counts(evidence: Evidence) -> None:
    for target, wanted in COUNTS.items():
        net = drawn(NETS[target]).eval()
        image = torch.zeros(1, 3, 320, 320)
        backbone, detector = count(net.backbone, image), count(net, image)
        found = (backbone.trainable, backbone.macs, detector.trainable, detector.stored, detector.macs)
        evidence.bar(
            f"counts: {target}, backbone's parameters and MACs, detector's trainable, stored, MACs", PRINTED[target],
            " ".join(map(str, wanted)), " ".join(map(str, found)), found == wanted,
        )  # fmt: skip


def exactness(evidence: Evidence) -> None:
    """In float32 as it is used, and in float64, where a rule that is wrong cannot pass for rounding."""
    image = torch.randn(1, 3, 161, 97, generator=torch.Generator().manual_seed(0))
    errors: dict[torch.dtype, float] = {}
    left = 0
    for spec in NETS.values():
        net = randomise_norms(drawn(spec)).eval()
        for dtype in (torch.float32, torch.float64):
            net, x = net.to(dtype), image.to(dtype)
            short = fold(net)
            with torch.no_grad():
                apart = [relative_error(a, b) for a, b in zip(net(x), short(x), strict=True)]
            errors[dtype] = max(errors.get(dtype, 0.0), *apart)
        left += sum(isinstance(child, nn.BatchNorm2d) for child in short.modules())
    for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        evidence.bar(
            f"exact: four detectors, folded against plain, random statistics, 161x97 px, {dtype}".replace("torch.", ""),
            "exact", f"<= {bar:.0e}, no batch norm left", f"{errors[dtype]:.1e}, {left} left",
            errors[dtype] <= bar and not left,
        )  # fmt: skip


# ---- bar 5 ----------------------------------------------------------------------------------------------------------


def boxes(evidence: Evidence, context: ProofContext) -> None:
    placed = anchors(map_sizes(320, 320), 320, 320)
    evidence.bar("anchors: of 320x320 px", "2034", "2034", str(len(placed)), len(placed) == 2034)
    random = torch.Generator().manual_seed(context.seed)
    sides = 0.02 + 0.7 * torch.rand(len(placed), 2, generator=random)
    corner = torch.rand(len(placed), 2, generator=random) * (1 - sides)
    drawn_boxes = torch.cat([corner, corner + sides], 1)
    apart = float((decode(encode(drawn_boxes, placed), placed) - drawn_boxes).abs().max())
    evidence.bar(
        "codes: there and back, on every anchor", "", "<= 1e-05", f"{apart:.1e} of the image's side", apart <= 1e-5
    )
    sets, same = (5 if context.quick else 20), 0
    for _ in range(sets):
        some = drawn_boxes[torch.randperm(len(placed), generator=random)[:200]]
        scores = torch.rand(200, 5, generator=random)
        found = suppress(some, scores)
        same += [(s, c) for s, c, _ in quadratic(some, scores)] == list(
            zip(found.scores.tolist(), found.labels.tolist(), strict=True)
        )
    evidence.bar(
        "suppression: against the quadratic loop, 200 boxes of 5 classes", "", f"{sets} of {sets} sets",
        f"{same} of {sets}", same == sets,
    )  # fmt: skip


def quadratic(some: Tensor, scores: Tensor, overlap: float = OVERLAP, most: int = MOST) -> list[tuple[float, int, int]]:
    """(score, class, box) of what the textbook's loop keeps, the surest first."""
    overlaps = iou(some, some).tolist()
    found = []
    for label, column in enumerate(scores.T.tolist()):
        kept: list[int] = []
        for index in sorted(range(len(column)), key=lambda i: -column[i]):
            if column[index] > LEAST_SCORE and len(kept) < most and all(overlaps[index][k] <= overlap for k in kept):
                kept.append(index)
        found += [(column[index], label, index) for index in kept]
    return sorted(found, key=lambda item: -item[0])[:most]


# ---- learning -------------------------------------------------------------------------------------------------------

SIZE = 96
MINI = NetSpec(16, ((16, "N"), (16, "F4*"), (32, "F4* F4"), (48, "I4* I4"), (64, "I4* T(.25,.75)")))
RECIPE = Recipe(steps=400, batch=16, lr=4e-3, weight_decay=1e-4, clip=10.0)
QUICK = Recipe(steps=60, batch=16, lr=4e-3, weight_decay=1e-4, clip=10.0)


def learning(evidence: Evidence, context: ProofContext) -> None:
    """What a small detector learns of letters on photographs, on typefaces and photographs that it never saw."""
    scenes = letter_scenes("train", SIZE, 128 if context.quick else 1024, context.seed)
    unseen = letter_scenes("test", SIZE, 32 if context.quick else 200, context.seed)
    net = drawn(MINI, len(ALPHABET), context.seed).eval()
    before = precision_of(net, unseen)
    recipe = QUICK if context.quick else RECIPE
    losses = train_detector(net, scenes, recipe, seed=context.seed, progress=context.progress)
    after = precision_of(net, unseen)
    first, last = (sum(part) / 10 for part in (losses[:10], losses[-10:]))
    evidence.bar(
        f"learning: loss of a small detector on scenes of {SIZE} px", "", "at most half of the first",
        f"{first:.2f} -> {last:.2f} in {recipe.steps} steps", last <= first / 2,
    )  # fmt: skip
    evidence.notes.append(
        f"learning: COCO's mAP on unseen photographs and typefaces {100 * before.mean:.1f} -> {100 * after.mean:.1f} %,"
        f" at overlap 0.5 {100 * before.at_50:.1f} -> {100 * after.at_50:.1f} % ({len(scenes)} scenes of training)"
    )


# ---- where dense layers pay -----------------------------------------------------------------------------------------

PLACES = ((80, 16), (40, 32), (20, 72), (10, 104))
"""(pixels a side, channels) as in the found networks at 320 px."""
WORDS = ("I8", "I4", "F4", "F8", "T(.25,.75)")


def blocks(evidence: Evidence, context: ProofContext) -> None:
    """A map of multiply-adds per second by block and place."""
    fewer = 0
    for size, channels in PLACES:
        image = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
        nets = {
            word: fold(BlockSpec.parse(word).build(channels, channels)).to(memory_format=torch.channels_last)
            for word in WORDS
        }  # fmt: skip
        macs = {word: count(net, image).macs for word, net in nets.items()}

        def run(net: nn.Module, image: Tensor = image) -> object:
            with torch.inference_mode():
                return net(image)

        timing = compare(
            {word: lambda net=net: run(net) for word, net in nets.items()}, rounds=5 if context.quick else 30,
            min_time_s=0.002, baseline="I8", seed=context.seed,
        )  # fmt: skip
        evidence.add_timing(f"blocks of {channels} channels at {size}x{size}, torch, channels last", timing)
        rates = {word: macs[word] / timing.median_s(word) / 1e9 for word in WORDS}
        fewer += timing.median_s("F4") < timing.median_s("I8")
        evidence.notes.append(
            f"{channels} channels at {size}x{size}: "
            + ", ".join(
                f"{word} {1e3 * timing.median_s(word):.2f} ms, {macs[word] / 1e6:.1f} M MACs, {rates[word]:.1f} GMAC/s"
                for word in WORDS
            )
        )
    evidence.notes.append(f"F4 takes less time than I8 in {fewer} of {len(PLACES)} places")
