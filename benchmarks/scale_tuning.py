"""What scale-tuning gains: perplexity over the original's on held-out text, with and without it.

    python benchmarks/scale_tuning.py [MODEL] [RECIPE ...]

The text and windows are those of the weight systems' proofs, the calibration text is theirs too. Exit 1 where tuning
does not better a recipe beyond the noise.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from headway.core.cache import StepCache
from headway.core.recipe import Recipe
from headway.core.system import Context
from headway.core.workload import default_texts
from headway.llm import scoring
from headway.llm.weights.proof_quality import TEXT_BYTES, WINDOW, WINDOWS, Scores, calibration
from headway.optimize import api
from headway.optimize.applying import apply_recipe

RECIPES = (
    "lut-gemm(bits=3, group_size=64)",
    "lut-gemm(bits=4, group_size=64)",
    "bipolar-int(weight_bits=4, act_bits=8)",
)
TUNING = " + scale-tuning()"


@dataclass
class Scored:
    """A model's text, and what recipes make of it."""

    model: Any
    context: Context
    parts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        pages = default_texts().heldout.encode()[:TEXT_BYTES].decode(errors="ignore")
        self.parts = list(scoring.windows(self.model, pages, WINDOW)[:WINDOWS])
        self.scores = Scores([len(part) - 1 for part in self.parts], 0)
        self.scores.of["float"] = scoring.log_probabilities(self.model.with_runtime("exact"), self.parts)

    def add(self, recipe: str) -> None:
        made: Any = apply_recipe(Recipe.read(recipe), self.model, self.context)
        self.scores.of[recipe] = scoring.log_probabilities(made.with_runtime("native"), self.parts)


def main(name: str = "smollm2-135m", *recipes: str) -> int:
    threads = api.use_threads(len(os.sched_getaffinity(0)))
    model = api.load(name)
    context = Context(api.machine(), calibration(model, default_texts().calibration), StepCache(), threads)
    scored, missed = Scored(model, context), 0
    for recipe in recipes or RECIPES:
        for each in (recipe, recipe + TUNING):
            scored.add(each)
        plain, tuned = (scored.scores.ratio(each) for each in (recipe, recipe + TUNING))
        gain = scored.scores.ratio(recipe + TUNING, to=recipe)
        print(f"{recipe}: {plain.text()} -> {tuned.text()}; tuned over plain {gain.text()}", flush=True)
        missed += not gain.high < 1.0
    for note in context.notes:
        print(f"  {note}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
