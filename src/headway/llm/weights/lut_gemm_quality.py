"""The quality part of the proof of `lut-gemm`: perplexity against the float model, paired by token (proof_quality.py).

2 bits are no bar: on a model this small nothing saves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.grouped import Int4Weight
from headway.llm.weights.lut_gemm import LutGemm
from headway.llm.weights.proof_quality import Case, score
from headway.llm.weights.quantizers import rtn
from headway.llm.weights.quantizers_bcq import bcq

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

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
    scores = score(evidence, model, context, LutGemm(), (*CASES, ROUNDED), "no model this small")
    gain = scores.ratio(CASES[1].name, ROUNDED.name)
    evidence.bar(
        "quality: 3 bits, gptq's perplexity over rounding's, paired interval", "", "below 1", gain.text(), gain.high < 1
    )
    _copies(evidence, model)
    _gaussian(evidence, context.seed)


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
