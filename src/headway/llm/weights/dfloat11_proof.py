"""The proof of `dfloat11`: the bfloat16 model and its coded form, bit against bit, byte against byte, second by second.

Models: a language model (SmolLM2-135M unless another is named) rounded to bfloat16, which is the reference; MiniLM and
EfficientNet-Lite0 rounded to bfloat16 for the bars about size, embeddings and every other matrix included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.measure import compare
from headway.core.model import Site
from headway.core.proof import ProofContext
from headway.core.system import Context
from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights import dfloat11_bench as bench
from headway.llm.weights.coded import U16, CodedWeight
from headway.llm.weights.dense import DenseWeight, to_bf16
from headway.llm.weights.dfloat11 import SYSTEM, Dfloat11, bfloat16_bits, coded, counts, grouped
from headway.llm.weights.huffman import POINTERS, code_lengths
from headway.llm.weights.kernel_timing import interleave, ratio

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

BASELINE = (
    "the same model in bfloat16 with the same kernels, a one-symbol decoder, and bfloat16 with layers left on disk"
)
MODEL = "smollm2-135m"
GREEDY = 256
"""Tokens decoded greedily by both models."""
BATCHES = (1, 8, 64, 256)
"""Tokens of a step whose extra time is compared; the last is a prompt, and the one of the bar on prefill."""
BUDGET = 0.75
"""Memory for weights, of their bfloat16 bytes, that the rival of bar 5 has."""
FAST_DISK = 1.5e9
"""Bytes/s up to which the bar on off-loading is set; beyond it the break-even rate is reported."""


def prove(context: ProofContext) -> Evidence:
    """Raises `BadInput` for a model that is no language model."""
    from headway.llm.language_model import LanguageModel

    loaded = context.load(context.model or MODEL)
    if not isinstance(loaded, LanguageModel):
        raise BadInput(
            f"{loaded.name} is no language model", f"prove dfloat11 on {MODEL}, a GGUF file or an LLM folder"
        )
    threads = context.threads or cpu.threads()
    evidence = context.begin(SYSTEM.slug, threads, loaded)
    with context.progress.task("rounding to bfloat16 and coding"):
        model = rounded(loaded).with_runtime("native", threads)
        small = apply(model, context, threads)
    fuzz(evidence, context.seed)
    lossless(evidence, model, small, context)
    sizes(evidence, model, small, context)
    memory(evidence, model, small, context)
    decoding(evidence, small, context, threads)
    overhead(evidence, model, small, context)
    off_loading(evidence, model, small, context)
    triton(evidence, small)
    return evidence


def rounded(model: LanguageModel) -> LanguageModel:
    """Every matrix as bfloat16: the reference."""
    return model.with_weights({s.name: DenseWeight(model.weight(s.name).dequantize(), "bf16") for s in model.sites()})


def apply(model: Any, context: ProofContext, threads: int, **settings: Any) -> Any:
    system = Dfloat11()
    plain = Context(context.target, threads=threads, seed=context.seed, progress=context.progress)
    return system.apply(model, system.settings.parse(settings, SYSTEM.slug), plain)


# ---- 1: lossless ----------------------------------------------------------------------------------------------------


def fuzz(evidence: Evidence, seed: int) -> None:
    """Random bits with exponents below 240, one value, one element, ten million elements; on every instruction set."""
    rng = np.random.default_rng(seed)
    random = rng.integers(0, 1 << 16, (333, 517)).astype(np.uint16)
    random[(random >> 7 & 0xFF) >= POINTERS] &= 0x3FFF
    wild = np.exp2(rng.uniform(-126, 112, (200, 300)))
    cases: dict[str, U16] = {
        "random bits": random,
        "all equal": np.full((100, 100), 0xBF80, np.uint16),
        "one element": np.full((1, 1), 0x8000, np.uint16),
        "every magnitude": to_bf16((wild * rng.choice([-1, 1], wild.shape)).astype(np.float32)),
        "ten million": to_bf16(rng.standard_normal((2500, 4000), dtype=np.float32) * np.float32(0.03)),
    }
    wrong = []
    for name, value in cases.items():
        lengths = code_lengths(counts(value))
        for level in cpu.levels():
            with cpu.at_level(level):
                again = CodedWeight.load(*_stored(coded(value, lengths, verify=False))).bits()
            if not np.array_equal(again, value):
                wrong.append(f"{name} ({level})")
    here = ", ".join(wrong) or f"equal: {len(cases)} kinds on {', '.join(cpu.levels())}"
    evidence.bar("lossless: patterns, coded, stored and expanded", "bit-identical", "all bits equal", here, not wrong)


def _stored(weight: CodedWeight) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return weight.tensors(), weight.meta()


def lossless(evidence: Evidence, model: LanguageModel, small: LanguageModel, context: ProofContext) -> None:
    """The model through a file, and what it computes: logits and greedy tokens."""
    from headway.llm.load import load_saved

    with tempfile.TemporaryDirectory(prefix="dfloat11-") as folder, context.progress.task("through a file"):
        small.save(Path(folder))
        again = load_saved(Path(folder)).with_runtime("native", evidence.threads)
        names = [site.name for site in model.sites()]
        differ = [name for name in names if not np.array_equal(_bits(again, name), _bits(model, name))]
        coded_too = sum(isinstance(again.weight(name), CodedWeight) for name in names)
        evidence.bar(
            "lossless: every tensor, model -> file -> memory -> expanded", "bit-identical", "all bits equal",
            f"{len(names) - len(differ)} of {len(names)} equal, {coded_too} of them coded",
            not differ and coded_too == len(names),
        )  # fmt: skip
        prompt = model.encode("The history of lossless compression begins with")
        tokens = 32 if context.quick else GREEDY
        before = _cpu.dfloat11_expanded()
        with context.progress.task(f"{tokens} greedy tokens of each"):
            ours, theirs = (m.complete(prompt, max_tokens=tokens, ignore_end=True).tokens for m in (again, model))
        expanded = _cpu.dfloat11_expanded() - before
        fed = np.asarray([*prompt, *theirs])[: model.architecture.context]
        same = np.array_equal(again.logits(fed).view(np.uint32), model.logits(fed).view(np.uint32))
    evidence.bar(
        "lossless: logits and greedy tokens", "bit-identical", f"{tokens} tokens and their logits equal",
        f"tokens {'equal' if ours == theirs else 'differ'}, logits {'equal' if same else 'differ'}",
        same and ours == theirs and len(ours) == tokens,
    )  # fmt: skip
    tiles = sum(-(-site.out_features // 16) for site in model.sites()) * tokens
    evidence.bar(
        "the kernel ran: tiles expanded while the tokens were decoded", "", f">= {tiles}", f"{expanded}",
        expanded >= tiles,
    )  # fmt: skip


def _bits(model: LanguageModel, site: str) -> U16:
    return bfloat16_bits(model.weight(site))[0]


# ---- 2: size --------------------------------------------------------------------------------------------------------


def sizes(evidence: Evidence, model: LanguageModel, small: LanguageModel, context: ProofContext) -> None:
    """Coded bytes of all matrices over their bfloat16 bytes, and over what entropy allows."""
    named = {site.name: small.weight(site.name) for site in small.sites()}
    cases: list[tuple[str, float, float, dict[str, list[CodedWeight]]]] = [
        (model.name, 0.685, 0.681, _groups(named, small.sites()))
    ]
    for name, floor, goal in (("minilm-l6", 0.685, 0.682), ("efficientnet-lite0", 0.690, 0.684)):
        cases.append((name, floor, goal, module_groups(context.load(name), context, evidence.threads)))
    worst = {1 << 20: 0.0, 100_000: 0.0}
    for name, floor, goal, groups in cases:
        every = [weight for members in groups.values() for weight in members]
        ratio = sum(w.nbytes for w in every) / sum(2 * w.shape[0] * w.shape[1] for w in every)
        evidence.bar(
            f"size: {name}, coded bytes over bfloat16", "0.676 to 0.695", f"<= {floor}, goal {goal}",
            f"{ratio:.4f} ({len(every)} matrices, {len(groups)} groups)", ratio <= goal,
        )  # fmt: skip
        for members in groups.values():
            weights = sum(w.shape[0] * w.shape[1] for w in members)
            for least in worst:
                if weights >= least:
                    worst[least] = max(worst[least], over_entropy(members))
                    break
    for least, bound in ((1 << 20, 1.006), (100_000, 1.03)):
        evidence.bar(
            f"size: groups of {least} weights or more, over entropy and side data", "", f"<= {bound}",
            f"{worst[least]:.4f} at worst" if worst[least] else "no such group", worst[least] <= bound,
        )  # fmt: skip


def over_entropy(members: list[CodedWeight]) -> float:
    """Bytes of a group over 8 bits of sign and mantissa, the entropy of its exponents, its gaps and positions."""
    count = sum(counts(w.bits()).astype(np.float64) for w in members)
    total = count.sum()
    share = count[count > 0] / total
    entropy = -(share * np.log2(share)).sum()
    side = sum(w.tensors()["gaps"].nbytes + w.tensors()["positions"].nbytes for w in members)
    return float(sum(w.nbytes for w in members) / (total * (8 + entropy) / 8 + side))


def _groups(weights: Mapping[str, Any], sites: Any) -> dict[str, list[CodedWeight]]:
    """Coded weights by group; what would not shrink is not among them."""
    return {
        name: kept
        for name, members in grouped(sites, "block").items()
        if (kept := [weights[s.name] for s in members if isinstance(weights[s.name], CodedWeight)])
    }


def module_groups(model: Any, context: ProofContext, threads: int) -> dict[str, list[CodedWeight]]:
    """A torch network rounded to bfloat16 and coded: its sites, and what else is a matrix (embeddings, filters)."""
    small = apply(model, context, threads, cast="bf16")
    groups = _groups({site.name: small.weight(site.name) for site in small.sites()}, small.sites())
    taken = {f"{site.name}.weight" for site in model.sites()}
    rest: dict[str, U16] = {}
    for name, tensor in model.tensors().items():
        if name not in taken and tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= 20_000:
            rest[name] = to_bf16(tensor.detach().float().reshape(tensor.shape[0], -1).numpy())
    for name, value in rest.items():
        groups[name] = [coded(value, code_lengths(counts(value)), group=name)]
    return groups


def memory(evidence: Evidence, model: LanguageModel, small: LanguageModel, context: ProofContext) -> None:
    """Peaks of fresh processes: whatever is no weight the bfloat16 model needs too."""
    with context.progress.task("memory of both in fresh processes"):
        ours, theirs = (bench.peak_bytes(m, 256, evidence.threads) for m in (small, model))
    weights = sum(model.weight(site.name).nbytes for site in model.sites())
    largest = max(sum(2 * s.parameters for s in members) for members in grouped(model.sites(), "block").values())
    limit = 0.70 * weights + largest + max(0, theirs - weights)
    evidence.bar(
        "memory: peak of the running model", "2.3 of 12.4 GB with blocks off-loaded",
        f"<= {limit / 1e6:.0f} MB (0.70 of the weights, the largest group, the rest of the bf16 model's peak)",
        f"{ours / 1e6:.0f} MB, bf16 {theirs / 1e6:.0f} MB of which weights {weights / 1e6:.0f}", ours <= limit,
    )  # fmt: skip


# ---- 3: speed of decoding -------------------------------------------------------------------------------------------


def decoding(evidence: Evidence, small: LanguageModel, context: ProofContext, threads: int) -> None:
    """Every layer in turn, from DRAM where caches are smaller than the model."""
    groups = list(_groups({site.name: small.weight(site.name) for site in small.sites()}, small.sites()).values())
    total = sum(w.shape[0] * w.shape[1] for group in groups for w in group)
    level = "avx2" if "avx2" in cpu.levels() else cpu.isa()
    one, two, plain = f"{level}, 1 thread", f"{level}, 2 threads", "one symbol at a time"
    arms = {one: bench.expansion(groups, level, 1)}
    for other in (cpu.isa(), "portable"):
        arms.setdefault(f"{other}, 1 thread", bench.expansion(groups, other, 1))
    if threads > 1:
        arms[two] = bench.expansion(groups, level, 2)
    rounds = 3 if context.quick else 9
    with context.progress.task("expanding all layers", rounds) as task:
        timing = interleave(arms, one, rounds, context.seed, task)
    evidence.add_timing("expanding all layers", timing)
    rates = ", ".join(f"{arm}: {total / timing.median_s(arm) / 1e6:.0f}" for arm in arms)
    rate = total / timing.median_s(one)
    evidence.bar(
        f"speed: million weights/s per core, {level}", "", ">= 1500", f"{rate / 1e6:.0f} ({rates})", rate >= 1.5e9
    )
    part = groups[: max(1, len(groups) // 4)]  # it is slow, and 40 MB are more than caches hold
    both = {plain: bench.expansion(part, level, 1, plain=True), one: bench.expansion(part, level, 1)}
    with context.progress.task("expanding one symbol at a time", rounds) as task:
        slow = interleave(both, plain, rounds, context.seed, task)
    evidence.add_timing("expanding a quarter of the layers one symbol at a time", slow)
    gain = ratio(slow, plain, one)
    evidence.bar("speed: over the one-symbol loop", "", ">= 8x", f"{gain:.1f}x", gain >= 8)
    if threads > 1:
        with context.progress.task("two cores"):
            alone, shared = (bench.expansion(part, level, count) for count in (1, 2))
            scale = bench.speed_up(alone, shared, 5.0 if context.quick else 20.0)
        evidence.bar(
            "speed: two cores over one, fastest round of each layer", "", ">= 1.8x",
            f"{scale:.2f}x ({ratio(timing, one, two):.2f}x with the load here)", scale >= 1.8,
        )  # fmt: skip


# ---- 4: overhead ----------------------------------------------------------------------------------------------------


def overhead(evidence: Evidence, model: LanguageModel, small: LanguageModel, context: ProofContext) -> None:
    """What expanding adds to a step of 1, 8, 64 and 256 tokens, interleaved, on one thread and by the fastest tenth of
    both: steps during which another process took the core fall out, and none had a second core that another lacked."""
    model, small = (m.with_runtime("native", 1) for m in (model, small))
    added: dict[int, float] = {}
    prompt = BATCHES[-1]
    for batch in BATCHES:
        arms = {
            "bf16": bench.prefill(model, batch) if batch == prompt else bench.Steps(model, batch),
            "dfloat11": bench.prefill(small, batch) if batch == prompt else bench.Steps(small, batch),
        }
        rounds = (9 if context.quick else 31) if batch > 8 else (21 if context.quick else 61)
        with context.progress.task(f"steps of {batch} tokens", rounds):
            timing = compare(arms, baseline="bf16", rounds=rounds, min_time_s=0.0, seed=context.seed)
        evidence.add_timing(f"step of {batch} tokens", timing)
        ours, theirs = (float(np.quantile(timing.samples[arm], 0.1)) for arm in ("dfloat11", "bf16"))
        added[batch] = ours - theirs
        if batch == prompt:
            here = ratio(timing, "dfloat11", "bf16")
            evidence.bar(
                f"overhead: {batch}-token prefill, time over bfloat16's", "~2x at batch 1, less with more",
                "<= 1.35", f"{here:.2f}", here <= 1.35,
            )  # fmt: skip
    middle = float(np.median(list(added.values())))
    spread = (max(added.values()) - min(added.values())) / middle
    evidence.bar(
        "overhead: added time over batches, (largest - smallest) / median", "constant", "<= 25%",
        f"{100 * spread:.0f}% ({', '.join(f'{b}: {1e3 * s:.1f} ms' for b, s in added.items())})",
        middle > 0 and spread <= 0.25,
    )  # fmt: skip


# ---- 5: against off-loading -----------------------------------------------------------------------------------------


def off_loading(evidence: Evidence, model: LanguageModel, small: LanguageModel, context: ProofContext) -> None:
    """Batch 8 with memory for three quarters of the bfloat16 weights."""
    weights = sum(model.weight(site.name).nbytes for site in model.sites())
    missing = int((1 - BUDGET) * weights)
    fits = sum(small.weight(site.name).nbytes for site in small.sites()) <= BUDGET * weights
    last = (model.weight(site.name).tensors()["values"] for site in reversed(_layers(model)))
    with bench.on_disk(last, missing) as file, context.progress.task("against off-loading"):
        rival = bench.OffLoaded(bench.Steps(model, 8), file, missing)
        arms = {"off-loading": rival, "dfloat11": bench.Steps(small, 8), "reading alone": rival.read}
        timing = compare(arms, rounds=7 if context.quick else 21, min_time_s=0.0, seed=context.seed)
    evidence.add_timing("step of 8 sequences in 75% of the memory", timing)
    gain = ratio(timing, "off-loading", "dfloat11")
    disk = missing / timing.median_s("reading alone")
    even = missing / (1.9 * timing.median_s("dfloat11"))
    fastest = min(timing.samples["off-loading"]) / min(timing.samples["dfloat11"])
    fast = disk > FAST_DISK
    evidence.bar(
        "off-loading: tokens/s over bfloat16 with layers on disk", "1.9 to 38.8x",
        f">= 1.9x on a disk of up to {FAST_DISK / 1e9:.1f} GB/s",
        f"{gain:.2f}x (fastest steps {fastest:.2f}x; disk {disk / 1e9:.2f} GB/s, 1.9x up to {even / 1e9:.2f} GB/s)",
        fits and (fast or gain >= 1.9),
    )  # fmt: skip


def _layers(model: LanguageModel) -> list[Site]:
    return [site for site in model.sites() if site.kind == "linear"]


# ---- the Triton kernel ----------------------------------------------------------------------------------------------


def triton(evidence: Evidence, small: LanguageModel) -> None:
    """The smallest matrix of three groups, expanded by both kernels."""
    groups = [members for members in grouped(small.sites(), "block").values() if members[0].kind == "linear"]
    picked: Iterator[Site] = (min(members, key=lambda site: site.parameters) for members in groups[:3])
    weights = [w for site in picked if isinstance(w := small.weight(site.name), CodedWeight)]
    same = bench.triton_equals([w.tensors() for w in weights], [w.shape for w in weights])
    evidence.bar(
        "Triton: the two-phase kernel, interpreted, against the CPU's", "", "3 of 3 equal",
        f"{sum(same)} of {len(same)} equal", len(same) == 3 and all(same),
    )  # fmt: skip
