"""What quality proofs of weight systems share: perplexity of settings against the float model, paired by token.

Text: Python's help topics, the first 8 windows of 512 tokens. Calibration: docstrings of the standard library. The
float model is the exact dequantisation of what was loaded, run in float32; candidates run their own kernels, with
embeddings and head as they were loaded unless said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from headway.core.cache import StepCache
from headway.core.evidence import Evidence, Series
from headway.core.proof import ProofContext
from headway.core.statistics import Interval, perplexity_ratio
from headway.core.system import Context
from headway.core.workload import CALIBRATION_CHARACTERS, default_texts
from headway.llm import scoring
from headway.llm.weights.transform import WeightTransform

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

WINDOW, WINDOWS, CALIBRATION_WINDOWS = 512, 8, 16
TEXT_BYTES = 200_000


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


@dataclass
class Scores:
    """ln p of every scored token, by case; the float model's first."""

    lengths: Sequence[int]
    seed: int
    of: dict[str, Any] = field(default_factory=dict)

    def ratio(self, case: str, to: str = "float") -> Interval:
        """Perplexity of a case over another's, paired by token, interval over windows."""
        return perplexity_ratio(self.of[case], self.of[to], windows=self.lengths, seed=self.seed)


def score(
    evidence: Evidence,
    model: LanguageModel,
    context: ProofContext,
    system: WeightTransform[Any],
    cases: Sequence[Case],
    paper: str,
) -> Scores:
    """Every case (of the quick ones in a quick proof) applied and scored; a bar for each that has a goal."""
    texts = default_texts()
    pages = texts.heldout.encode()[:TEXT_BYTES].decode(errors="ignore")
    parts = scoring.windows(model, pages, WINDOW)[:WINDOWS]
    scores = Scores([len(part) - 1 for part in parts], context.seed)
    scores.of["float"] = scoring.log_probabilities(model.with_runtime("exact"), parts)
    evidence.quality["perplexity, float"] = float(np.exp(-scores.of["float"].mean()))
    calibrating = Context(
        context.target,
        calibration(model, texts.calibration),
        StepCache(),
        evidence.threads,
        context.seed,
        context.progress,
    )
    for case in cases:
        if context.quick and not case.quick:
            continue
        settings = system.settings.parse(case.settings, system.card.slug)
        candidate = cast("LanguageModel", system.apply(model, settings, calibrating)).with_runtime("native")
        scores.of[case.name] = scoring.log_probabilities(candidate, parts)
        ratio = scores.ratio(case.name)
        evidence.quality[f"perplexity ratio, {case.name}"] = ratio.value
        if case.goal < float("inf"):
            evidence.bar(
                f"quality: perplexity over float's, {case.name}",
                paper,
                f"<= {case.goal}",
                ratio.text(),
                ratio.value <= case.goal,
            )
    evidence.series += [Series("ln p of a token", arm, "nat", tuple(map(float, v))) for arm, v in scores.of.items()]
    return scores


def calibration(model: LanguageModel, text: str) -> Sequence[tuple[Any, ...]]:
    """Token windows of a text, two to an input."""
    import torch

    parts = scoring.windows(model, text[:CALIBRATION_CHARACTERS], WINDOW)[:CALIBRATION_WINDOWS]
    return [(torch.from_numpy(np.stack(parts[at : at + 2])),) for at in range(0, len(parts) - 1, 2)]
