"""The quality part of the proof of `lut-gemm`: perplexity against the float model, paired by token.

Text: Python's help topics, the first 8 windows of 512 tokens. Calibration: docstrings of the standard library. The
float model is the exact dequantisation of what was loaded, run in float32; candidates run their own kernels, with
embeddings and head as they were loaded unless said. 2 bits are no bar: on a model this small nothing saves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headway.core.cache import StepCache
from headway.core.evidence import Evidence, Series
from headway.core.proof import ProofContext
from headway.core.statistics import perplexity_ratio
from headway.core.system import Context
from headway.core.workload import default_texts
from headway.llm import scoring
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.grouped import Int4Weight
from headway.llm.weights.lut_gemm import LutGemm
from headway.llm.weights.quantizers import rtn
from headway.llm.weights.quantizers_bcq import bcq

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

WINDOW, WINDOWS, CALIBRATION_WINDOWS = 512, 8, 16
TEXT_BYTES, CALIBRATION_CHARACTERS = 200_000, 400_000


@dataclass(frozen=True)
class Case:
    """One setting and the perplexity ratio it must not exceed."""

    settings: Mapping[str, Any]
    goal: float
    quick: bool = False
    """Run in the quick proof too."""

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())


CASES = (
    Case({"bits": 4, "group_size": 64}, 1.045, quick=True),
    Case({"bits": 3, "group_size": 64}, 1.30, quick=True),
    Case({"bits": 4, "group_size": 128}, 1.08),
    Case({"bits": 3, "group_size": 32}, 1.17),
    Case({"bits": 4, "group_size": 32, "only": "head"}, 1.034),
)
ROUNDED = Case({"bits": 3, "group_size": 64, "quantizer": "rtn"}, float("inf"), quick=True)

GAUSSIAN = {2: (0.209, 0.126, 0.111), 3: (0.0382, 0.0312, 0.0333), 4: (0.0083, 0.0076, 0.0100)}
"""Error / variance of Gaussian groups of 64: rounding, rounding with the clip search, binary codes without offset."""


def quality(evidence: Evidence, model: LanguageModel, context: ProofContext) -> None:
    """Bars 4."""
    texts = default_texts()
    pages = texts.heldout.encode()[:TEXT_BYTES].decode(errors="ignore")
    parts = scoring.windows(model, pages, WINDOW)[:WINDOWS]
    lengths = [len(part) - 1 for part in parts]
    reference = scoring.log_probabilities(model.with_runtime("exact"), parts)
    evidence.quality["perplexity, float"] = float(np.exp(-reference.mean()))
    calibrating = Context(
        context.target, _calibration(model, texts.calibration), StepCache(), evidence.threads, context.seed,
        context.progress,
    )  # fmt: skip
    scored: dict[str, Any] = {"float": reference}
    for case in (*CASES, ROUNDED):
        if context.quick and not case.quick:
            continue
        settings = LutGemm.settings.parse(case.settings, "lut-gemm")
        candidate = cast("LanguageModel", LutGemm().apply(model, settings, calibrating)).with_runtime("native")
        scored[case.name] = scoring.log_probabilities(candidate, parts)
        ratio = perplexity_ratio(scored[case.name], reference, windows=lengths, seed=context.seed)
        evidence.quality[f"perplexity ratio, {case.name}"] = ratio.value
        if case.goal < float("inf"):
            evidence.bar(
                f"quality: perplexity over float's, {case.name}", "no model this small",
                f"<= {case.goal}", ratio.text(), ratio.value <= case.goal,
            )  # fmt: skip
    gain = perplexity_ratio(scored[CASES[1].name], scored[ROUNDED.name], windows=lengths, seed=context.seed)
    evidence.bar(
        "quality: 3 bits, gptq's perplexity over rounding's, paired interval", "", "below 1", gain.text(), gain.high < 1
    )
    evidence.series += [Series("ln p of a token", arm, "nat", tuple(map(float, v))) for arm, v in scored.items()]
    _copies(evidence, model)
    _gaussian(evidence, context.seed)


def _calibration(model: LanguageModel, text: str) -> Sequence[tuple[Any, ...]]:
    import torch

    parts = scoring.windows(model, text[:CALIBRATION_CHARACTERS], WINDOW)[:CALIBRATION_WINDOWS]
    return [(torch.from_numpy(np.stack(parts[at : at + 2])),) for at in range(0, len(parts) - 1, 2)]


def _copies(evidence: Evidence, model: LanguageModel) -> None:
    """A 4-bit grid with groups of 32 and a float offset holds the blocks of a Q4_1 file as they are."""
    found = [weight for site in model.sites() if isinstance(weight := model.weight(site.name), Int4Weight)]
    if not found:
        evidence.notes.append(f"{model.name} has no 4-bit blocks to copy: that bar does not apply")
        return
    equal = all(
        np.array_equal(
            BitPlanes.from_codes(w.codes(), w.scale, w.minimum, bits=4, group_size=w.group_size).dequantize(),
            w.dequantize(),
        )
        for w in found
    )
    evidence.bar(
        f"quality: the file's own 4-bit blocks as bit planes ({len(found)} matrices)", "a special case",
        "values equal", "equal" if equal else "differ", equal,
    )  # fmt: skip


def _gaussian(evidence: Evidence, seed: int) -> None:
    """The quantisers on independent Gaussian weights, where every figure is known."""
    w = np.random.default_rng(seed).standard_normal((128, 1024), dtype=np.float32)
    worst, text = 0.0, []
    for bits, expected in GAUSSIAN.items():
        made = (
            rtn(w, bits, 64, grid="zero").dequantize(),
            rtn(w, bits, 64, grid="mse").dequantize(),
            bcq(w, bits, 64, offset=False).dequantize(),
        )
        here = [float(np.square(value - w).mean() / np.square(w).mean()) for value in made]
        worst = max(worst, *(abs(a / b - 1) for a, b in zip(here, expected, strict=True)))
        text.append(f"{bits} bits " + ", ".join(f"{value:.4f}" for value in here))
    evidence.bar(
        "quality: rounding, clip search and binary codes on Gaussian groups", "", "within 5% of the known errors",
        f"{100 * worst:.1f}% at most; " + "; ".join(text), worst <= 0.05,
    )  # fmt: skip
