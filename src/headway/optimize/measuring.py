"""`Bench`: measures candidates of one optimisation beside the unmodified model, and remembers what it measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.core.cache import StepCache
from headway.core.evidence import Evidence
from headway.core.jsontext import plain
from headway.core.measure import Timing, compare
from headway.core.model import Model
from headway.core.recipe import Recipe
from headway.core.registry import source_digest, systems
from headway.core.system import Context
from headway.optimize import footprint
from headway.optimize.applying import apply_recipe
from headway.optimize.candidate import Candidate
from headway.optimize.subject import Split, Subject

BASELINE = "baseline"
WINNER = "winner"
UNMODIFIED = Recipe()
FEWEST = 7
"""Pairs that a timing goes on for beyond its time: fewer say nothing."""
GLANCES = 3
"""Pairs of the time to the first token during a search that is not asked for it: the proof takes it in full."""
KEPT_MODELS = 10
"""Applied models kept in memory at once."""


@dataclass
class Bench:
    """Everything that is measured goes through here, and through the step cache: a second run pays only for news."""

    subject: Subject
    context: Context
    rounds: int = 24
    metrics_limit_s: float = 12.0
    """Seconds one interleaved timing may take for each metric."""
    patience_s: float = 60.0
    """Seconds it may take for the first `FEWEST` pairs."""
    ttft_asked: bool = True
    """Whether the budget limits the time to the first token."""
    models: dict[str, Model] = field(default_factory=dict)
    first_s: dict[str, float] = field(default_factory=dict)
    """Metric -> seconds of the unmodified model when it was first measured."""

    def model(self, recipe: Recipe) -> Model:
        """The model with the recipe applied; the last few are kept."""
        key = str(recipe)
        if key not in self.models:
            made = apply_recipe(recipe, self.subject.model, self.context) if recipe.steps else self.subject.model
            self.models[key] = made
            for old in [known for known in self.models if known not in (key, str(UNMODIFIED))][: -KEPT_MODELS + 1]:
                del self.models[old]
        return self.models[key]

    def qualities(
        self, recipes: Sequence[Recipe], split: Split, units: int, full: bool = False
    ) -> list[dict[str, float]]:
        """Each recipe's `quality` and interval (with `full` its companions) on the first `units` pieces of a split."""
        made_of = {str(recipe): recipe for recipe in recipes}
        missing = [text for text in made_of if not self._holds("quality", text, split, units, full)]
        models = [self.model(made_of[text]) for text in missing]
        measured = dict(zip(missing, self.subject.qualities(models, split, units, full), strict=True)) if models else {}

        def one(recipe: Recipe) -> Mapping[str, float]:
            return measured.get(str(recipe)) or self.subject.qualities([self.model(recipe)], split, units, full)[0]

        return [
            dict(self._cached("quality", lambda recipe=recipe: one(recipe), str(recipe), split, units, full))
            for recipe in recipes
        ]

    def timings(self, recipes: Mapping[str, Recipe], rounds: int, purpose: str) -> dict[str, tuple[Timing, int]]:
        """Metric -> the interleaved run of the unmodified model (arm `baseline`, run twice) and every named recipe."""
        found: dict[str, tuple[Timing, int]] = {}
        arms = {BASELINE: UNMODIFIED, **recipes}
        for metric in self.subject.clocks(self.subject.model):
            pairs = rounds
            if metric == "ttft_s":
                pairs = max(FEWEST, rounds // 3) if self.ttft_asked or purpose != "search" else GLANCES
            fewest = min(FEWEST, pairs)

            def measure(metric: str = metric, pairs: int = pairs, fewest: int = fewest) -> dict[str, Any]:
                clocks = {name: self.subject.clocks(self.model(recipe))[metric] for name, recipe in arms.items()}
                with self.context.progress.task(f"timing {metric} of {len(arms)} models, interleaved", pairs) as task:
                    timing = compare(
                        {name: call for name, (call, _) in clocks.items()},
                        rounds=pairs,
                        baseline=BASELINE,
                        seed=self.context.seed,
                        warmup=1,
                        fewest=fewest,
                        patience_s=self.patience_s,
                        time_limit_s=self.metrics_limit_s * (1 + len(arms) / 2),
                        progress=lambda done, total: task.advance(),
                    )
                return {**plain(timing), "units": clocks[BASELINE][1], "patience_s": self.patience_s}

            made_of = {name: str(recipe) for name, recipe in arms.items()}
            document = self._cached("timing", measure, metric, made_of, pairs, purpose)
            if len(document["orders"]) < fewest and document.get("patience_s", 0.0) < self.patience_s:
                document = self._cached("timing", measure, metric, made_of, pairs, purpose, self.patience_s)
            document.pop("patience_s", None)
            units = document.pop("units")
            found[metric] = (Timing(**document), units)
        return found

    def memory(self, recipe: Recipe) -> float:
        """Peak resident bytes of a fresh process that loads the model and serves the workload, over an empty one."""

        def measure() -> float:
            return footprint.peak_bytes(self.model(recipe), self.subject.describe(), self.context.threads)

        return float(self._cached("memory", measure, str(recipe)))

    def measure(self, candidates: Sequence[Candidate], units: int) -> list[Candidate]:
        """Each candidate with everything measured: times beside the baseline, memory, size, quality on search data.

        A time is the candidate's paired ratio to the unmodified model of the same run, times what that took when it
        was first measured: rounds of the search compare, whatever else the machine did meanwhile.
        """
        arms = {f"candidate {number}": c.recipe for number, c in enumerate(candidates, 1) if c.recipe.steps}
        timings = self.timings(arms, self.rounds, "search")
        with self.context.progress.task(f"quality of {len(candidates)} candidates, {units} pieces each"):
            qualities = self.qualities([candidate.recipe for candidate in candidates], "search", units, full=True)
        measured = []
        progress = self.context.progress.track(candidates, "memory of each candidate")
        for candidate, quality in zip(progress, qualities, strict=True):
            arm = next((name for name, recipe in arms.items() if recipe is candidate.recipe), BASELINE)
            metrics = self._rates(
                {
                    metric: self.first_s.setdefault(metric, timing.median_s(BASELINE) / calls)
                    * (1.0 if arm == BASELINE else timing.comparison(arm).ratio.value)
                    for metric, (timing, calls) in timings.items()
                }
            )
            metrics["size_bytes"] = float(self.model(candidate.recipe).size_bytes())
            metrics["memory_bytes"] = self.memory(candidate.recipe)
            metrics.update(quality)
            measured.append(candidate.with_measured(**metrics))
        return measured

    def _rates(self, times: Mapping[str, float]) -> dict[str, float]:
        """Times, and the throughput they mean."""
        metrics = dict(times)
        if "tpot_s" in metrics:
            metrics["throughput_tok_s"] = 1.0 / metrics["tpot_s"]
        elif "latency_s" in metrics:
            metrics["throughput_per_s"] = 1.0 / metrics["latency_s"]
        return metrics

    def prove(self, candidate: Candidate, evidence: Evidence, rounds: int) -> tuple[Candidate, dict[str, float]]:
        """The candidate measured again on held-out data, and the baseline beside it; every sample is kept as evidence.

        Of the baseline: times of the same run, and quality on the same data.
        """
        arms = {WINNER: candidate.recipe} if candidate.recipe.steps else {}
        timings = self.timings(arms, rounds, "proof")
        for metric, (timing, units) in timings.items():
            evidence.add_timing(metric, timing, per_call=units)
        arm = WINNER if arms else BASELINE
        then = {name: {m: t.median_s(name) / calls for m, (t, calls) in timings.items()} for name in (arm, BASELINE)}
        units = self.subject.units("heldout")
        quality, original = self.qualities([candidate.recipe, UNMODIFIED], "heldout", units, full=True)
        metrics = self._rates(then[arm]) | quality
        metrics["size_bytes"] = float(self.model(candidate.recipe).size_bytes())
        metrics["memory_bytes"] = self.memory(candidate.recipe)
        evidence.quality = {name: value for name, value in metrics.items() if not name.endswith(("_s", "_bytes"))}
        return candidate.with_measured(**metrics), self._rates(then[BASELINE]) | original

    def known(self, what: str, *parts: Any) -> Any:
        """What was kept under these parts for this model, workload and machine; None if nothing was."""
        return self._cached(what, dict, *parts) if self._holds(what, *parts) else None

    def keep(self, value: Any, what: str, *parts: Any) -> None:
        """Remember a JSON-able value for `known`."""
        self._cached(what, lambda: value, *parts)

    def _key(self, cache: StepCache, what: str, *parts: Any) -> str:
        machine = [self.context.target.fingerprint, self.context.threads, self.context.seed]
        # A system that was edited since makes something else of the same recipe.
        named = str(parts)
        sources = [source_digest(entry.module) for slug, entry in sorted(systems().items()) if slug in named]
        return cache.key(what, self.subject.model.fingerprint(), self.subject.describe(), machine, sources, *parts)

    def _holds(self, what: str, *parts: Any) -> bool:
        cache = self.context.cache
        return cache is not None and cache.holds(self._key(cache, what, *parts))

    def _cached(self, what: str, build: Callable[[], Any], *parts: Any) -> Any:
        cache = self.context.cache
        return plain(build()) if cache is None else cache.json(self._key(cache, what, *parts), build)
