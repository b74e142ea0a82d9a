"""The quality part of the proof of `bipolar-int`: perplexity against the float model (proof_quality.py).

All linear layers of the blocks; embedding and head as they were loaded. The floor has one scale per token and nothing
turned; the goals turn weights and activations and give 64 channels a scale. 2 bits are reported and no bar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.llm.weights.bipolar_int import BipolarInt
from headway.llm.weights.proof_quality import Case, score
from headway.llm.weights.quantizers_bipolar import bipolar

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

PLAIN = {"act_group": 0, "rotate": 0}
REPORTED = float("inf")
CASES = (
    Case({"weight_bits": 8, "act_bits": 8, "quantizer": "rtn"}, 1.005, quick=True),
    Case({"weight_bits": 4, "act_bits": 8}, 1.06, quick=True),
    Case({"weight_bits": 4, "act_bits": 4}, 1.21),
    Case({"weight_bits": 8, "act_bits": 8, "quantizer": "rtn", "clip": "max", **PLAIN}, 1.18),
    Case({"weight_bits": 4, "act_bits": 8, **PLAIN}, 1.30),
    Case({"weight_bits": 2, "act_bits": 8, "group_size": 64}, REPORTED),
    Case({"weight_bits": 2, "act_bits": 4, "group_size": 64}, REPORTED),
)

GAUSSIAN = (0.121, 0.192, 0.149)
"""Error / variance of Gaussian weights at the best scale: -3, -1, 1, 3; -1, 0, 1; -2 .. 1."""


def quality(evidence: Evidence, model: LanguageModel, context: ProofContext) -> None:
    """Bars 4."""
    scores = score(evidence, model, context, BipolarInt(), CASES, "perplexity of Llama2-7B, not of a model this small")
    for case in CASES:
        if case.goal == REPORTED and case.name in scores.of:
            evidence.notes.append(f"perplexity over float's, {case.name}: {scores.ratio(case.name).text()}")
    gaussian(evidence, context.seed)


def gaussian(evidence: Evidence, seed: int) -> None:
    """2 bits on independent Gaussian weights, where every figure is known: four levels against signed integers."""
    w = np.random.default_rng(seed).standard_normal((16, 4096), dtype=np.float32)
    power = float(np.square(w).mean())
    four = float(np.square(bipolar(w, 2, 0).dequantize() - w).mean()) / power
    steps = np.linspace(0.4, 2.0, 161, dtype=np.float32)
    ternary, signed = (
        min(float(np.square(step * np.clip(np.rint(w / step), low, 1) - w).mean()) for step in steps) / power
        for low in (-1, -2)
    )
    here = (four, ternary, signed)
    apart = max(abs(a / b - 1) for a, b in zip(here, GAUSSIAN, strict=True))
    evidence.bar(
        "quality: 2 bits on Gaussian weights, error over variance: bipolar, {-1, 0, 1}, {-2 .. 1}",
        ", ".join(map(str, GAUSSIAN)), "within 3%, bipolar least",
        ", ".join(f"{value:.3f}" for value in here) + f" ({100 * apart:.1f}% at most)",
        apart <= 0.03 and four < min(ternary, signed),
    )  # fmt: skip
