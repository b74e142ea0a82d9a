"""Proof of `bipolar-int`: exact, linear in the pairs of planes, near the popcount roof, fast to decode with, and close.

Five claims, as experiments on this machine with a real language model:
    exact     integers of every kernel against int64 products (bipolar_int_exact.py)
    law       time against the number of pairs of planes, 16 activation rows, one scale per row and token; and the
              share of what xor, popcount and sum reach on registers alone
    speed     one token through all layers, read from DRAM, activations quantised anew: against the faster of two
              float32 products (ours and torch's), with the repository's int8 and torch's beside; whole-model decoding
    quality   perplexity against the float model, paired by token (bipolar_int_quality.py)
    traffic   a model of the GPU: recovery in the block that multiplies against one pass per pair of planes
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.measure import Timing, compare
from headway.core.proof import ProofContext
from headway.core.system import Context
from headway.hardware.bench import Clears
from headway.hardware.calibrate import sweeper
from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.kernels.gpu.bipolar_traffic import Product
from headway.llm.weights import bipolar_int_bench as bench
from headway.llm.weights.bipolar import BipolarWeight
from headway.llm.weights.bipolar_int import SYSTEM, BipolarInt
from headway.llm.weights.bipolar_int_bench import FLOAT, INT8, TORCH, TORCH_INT8, pair
from headway.llm.weights.bipolar_int_exact import exactness
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.int8 import Int8
from headway.llm.weights.kernel_timing import interleave, ratio
from headway.llm.weights.proof_decode import Step

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

BASELINE = "float32 products (the faster of ours and torch's), int8 products (ours and torch's), and the float model"
MODEL = "smollm2-135m"
LIMITS = {(1, 1): 0.10, (2, 4): 0.25, (3, 4): 0.40}
"""Time over float32's, at every level."""
COUNTED_LIMITS = {(2, 8): 0.22}
"""Where the CPU counts the bits of a vector in one instruction."""


def prove(context: ProofContext) -> Evidence:
    """Raises `BadInput` for a model that is no language model."""
    from headway.llm.language_model import LanguageModel
    from headway.llm.weights.bipolar_int_quality import quality

    model = context.load(context.model or MODEL)
    if not isinstance(model, LanguageModel):
        raise BadInput(
            f"{model.name} is no language model", f"prove bipolar-int on {MODEL}, a GGUF file or an LLM folder"
        )
    threads = context.threads or cpu.threads()
    evidence = context.begin(SYSTEM.slug, threads, model)
    exactness(evidence, context.seed)
    traffic(evidence)
    for level in dict.fromkeys((cpu.isa(), "avx2" if "avx2" in cpu.levels() else cpu.isa())):
        with cpu.at_level(level):
            law(evidence, context)
            speed(evidence, _layers(model), context, threads, sweeper(context.target))
    sizes(evidence)
    decode(evidence, model.with_runtime("native", threads), context)
    quality(evidence, model, context)
    return evidence


def _layers(model: LanguageModel) -> list[list[bench.Shape]]:
    """Shapes of the linear layers in order; those that read the same activations together."""
    linear = [site for site in model.sites() if site.kind == "linear"]
    starts = [i for i, site in enumerate(linear) if site.name.rsplit(".")[-1] in ("q", "o", "gate", "down")]
    groups = (linear[start:end] for start, end in itertools.pairwise([*starts, len(linear)]))
    return [[(site.out_features, site.in_features) for site in group] for group in groups]


# ---- law ------------------------------------------------------------------------------------------------------------


def law(evidence: Evidence, context: ProofContext) -> None:
    """Bars 2, for the best counting kernels of the level in use."""
    level = str(_cpu.bipolar_levels()[-1])
    samples = 3 if context.quick else 8
    with context.progress.task(f"every pair of widths, {level}", samples) as task:
        timing = interleave(bench.widths(level, context.seed), pair(1, 1), samples, context.seed, task)
    evidence.add_timing(f"{bench.ROWS} x {bench.COLUMNS}, {bench.BATCH} rows, 1 thread, {level}", timing)
    pairs = list(itertools.product(bench.WIDTHS, bench.WIDTHS))
    seconds = np.array([timing.median_s(pair(n, m)) for n, m in pairs])
    products = np.array([n * m for n, m in pairs], float)
    fit = linear_r2(products, seconds)
    evidence.bar(
        f"law: R2 of time over n m, 25 pairs of widths ({level})", "n m products of single bits", ">= 0.98",
        f"{fit:.4f}", fit >= 0.98,
    )  # fmt: skip
    grows = ratio(timing, pair(2, 2), pair(1, 1))
    evidence.bar(f"law: time of W2A2 over W1A1's ({level})", "4", "3 to 4.6", f"{grows:.2f}", 3 <= grows <= 4.6)
    bits = products * bench.BATCH * bench.ROWS * bench.COLUMNS
    roof = bench.ROOF_BITS / timing.median_s(bench.ROOF)
    shares = bits / seconds / roof
    evidence.bar(
        f"law: bits counted over the popcount roof, least of 25 pairs ({level})", "", ">= 0.50",
        f"{shares.min():.2f} (median {np.median(shares):.2f}; roof {roof / 1e9:.0f} Gbit/s)", shares.min() >= 0.5,
    )  # fmt: skip


def linear_r2(x: Any, y: Any) -> float:
    """Share of the variance of y that a straight line over x explains."""
    slope, start = np.polyfit(x, y, 1)
    return float(1 - np.square(y - slope * x - start).sum() / np.square(y - y.mean()).sum())


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed(
    evidence: Evidence, groups: Sequence[Sequence[bench.Shape]], context: ProofContext, threads: int, clears: Clears
) -> None:
    """Bars 3, with the kernels of the level in use."""
    level = str(_cpu.bipolar_levels()[-1])
    part = groups[: len(groups) // 3] if context.quick else groups
    samples = 3 if context.quick else 8
    with context.progress.task(f"packing the layers, {level}", len(bench.PAIRS) + 1) as task:
        decoding = bench.Decoding(part, level, threads, clears, task)
    with context.progress.task(f"one token through all layers, {level}", samples) as task:
        timing = interleave(decoding.arms(), FLOAT, samples, context.seed, task)
    evidence.add_timing(f"one token through all layers, {threads} threads, {level}", timing)
    fastest = min((FLOAT, TORCH), key=timing.median_s)
    counted = COUNTED_LIMITS if "vpopcntdq" in cpu.features() else {}
    for (n, m), limit in {**LIMITS, **counted}.items():
        here = ratio(timing, pair(n, m), fastest)
        evidence.bar(
            f"speed: decoding products, {pair(n, m)} over {fastest} ({level})", "1/3.99 of FP16 (RTX 3090)",
            f"<= {limit}", f"{here:.3f} ({ratio(timing, pair(n, m), INT8):.2f} of our int8, "
            f"{ratio(timing, pair(n, m), TORCH_INT8):.2f} of torch's)", here <= limit,
        )  # fmt: skip
    _rates(evidence, decoding, timing, level)


def _rates(evidence: Evidence, decoding: bench.Decoding, timing: Timing, level: str) -> None:
    text = []
    for name, natives in decoding.natives.items():
        nbytes = sum(native.nbytes for group in natives for native in group)
        text.append(f"{name} {nbytes / timing.median_s(name) / 1e9:.1f}")
    evidence.notes.append(f"{level}, GB/s of weights read from DRAM: " + ", ".join(text))


def sizes(evidence: Evidence) -> None:
    """Bytes of the weights that bars 3 time, over float32's."""
    worst = 0.0
    for n, m in bench.PAIRS:
        for shape in ((576, 576), (1536, 576), (576, 1536)):
            weight = bench.weight(shape, n, m)
            for nbytes in (weight.nbytes, weight.native().nbytes):
                worst = max(worst, nbytes / (4.0 * shape[0] * shape[1]) - n / 32)
    evidence.bar(
        "speed: weight bytes over float32's, beyond n / 32", "", "<= 0.03", f"{worst:.4f} at most", worst <= 0.03
    )


def decode(evidence: Evidence, model: LanguageModel, context: ProofContext) -> None:
    """Whole-model decoding at W4A8 and W2A8 against float32 and 8 bits, embeddings and head as the model has them."""
    plain = Context(context.target, threads=evidence.threads, seed=context.seed, progress=context.progress)
    linear = [site for site in model.sites() if site.kind == "linear"]
    models: dict[str, Any] = {
        "float32": model.with_weights({s.name: DenseWeight(model.weight(s.name).dequantize()) for s in model.sites()}),
        "8 bits": Int8().apply(model, Int8.settings.parse({}, "int8"), plain),
    }
    for bits in (4, 2):
        settings = BipolarInt.settings.parse({"weight_bits": bits, "quantizer": "rtn"}, SYSTEM.slug)
        models[pair(bits, 8)] = BipolarInt().apply(model, settings, plain)
    steps = {name: Step(candidate) for name, candidate in models.items()}
    ours = [pair(4, 8), pair(2, 8)]
    with context.progress.task("decoding", 1) as task:
        before, called = sum(_cpu.bipolar_counts().values()), sum(steps[name].calls for name in ours)
        timing = compare(
            steps, baseline="float32", rounds=15 if context.quick else 40, min_time_s=0.02, seed=context.seed
        )
        tiles_done = sum(_cpu.bipolar_counts().values()) - before
        calls = sum(steps[name].calls for name in ours) - called
        task.advance()
    evidence.add_timing("tpot_s", timing)
    for name in ours:
        here = ratio(timing, name, "float32")
        evidence.bar(
            f"speed: decoding, {name} over float32's time", "1/6.7 of an LLM's inference", "<= 0.50",
            f"{here:.2f} ({ratio(timing, name, '8 bits'):.2f} of 8 bits')", here <= 0.50,
        )  # fmt: skip
    tiles = calls * sum(-(-site.out_features // 16) for site in linear)
    bipolar = all(isinstance(models[name].weight(site.name), BipolarWeight) for name in ours for site in linear)
    evidence.bar(
        "the kernels ran: tiles multiplied as bipolar integers while decoding was timed", "", f"{tiles}",
        f"{tiles_done}", bipolar and tiles_done == tiles > 0,
    )  # fmt: skip


# ---- traffic --------------------------------------------------------------------------------------------------------


def traffic(evidence: Evidence) -> None:
    """Bar 5: a model of a GPU's memory, not a measurement on one."""
    small = Product(96, 80, 64, 3, 4, tile=32)
    rng = np.random.default_rng(0)
    w, x = 2 * rng.integers(0, 8, (96, 64)) - 7, 2 * rng.integers(0, 16, (80, 64)) - 15
    right = all(np.array_equal(made.arrays["y"], w @ x.T) for made in (small.recover(w, x), small.planes(w, x)))
    large = Product(4096, 4096, 4096, 3, 4, tile=128)
    inside, apart = large.recover(), large.planes()
    here = inside.output_bytes / apart.output_bytes
    evidence.bar(
        "traffic: output of recovery in the block over plane by plane, W3A4, 4096^3 (modelled)", "n m times less",
        "1/12", f"1/{1 / here:.3g} (all traffic 1/{apart.total_bytes / inside.total_bytes:.3g}); "
        f"{'both schedules give the product' if right else 'a schedule gives a wrong product'}",
        right and abs(here * 12 - 1) < 1e-9,
    )  # fmt: skip
