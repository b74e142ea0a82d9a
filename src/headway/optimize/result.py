"""`Result`: the answer of one optimisation, as values, as JSON and as text; and the artifact it leaves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.core.artifact import write_artifact
from headway.core.evidence import Evidence
from headway.core.model import Model
from headway.core.recipe import Recipe
from headway.core.registry import systems
from headway.core.units import show
from headway.optimize.candidate import Candidate, violations
from headway.optimize.measuring import Bench
from headway.optimize.report import site_bits, write_report
from headway.optimize.request import Request, check_output

SHOWN = (
    ("tpot_s", "s"),
    ("latency_s", "s"),
    ("ttft_s", "s"),
    ("memory_bytes", "B"),
    ("size_bytes", "B"),
    ("quality", ""),
)


@dataclass
class Result:
    """`met`: whether the winner, proven on held-out data, holds every limit of the budget."""

    request: Request
    bench: Bench
    baseline: Candidate
    winner: Candidate
    front: Sequence[Candidate]
    candidates: Sequence[Candidate]
    met: bool
    evidence: Evidence
    artifact: Path | None = None
    report: Path | None = None

    @property
    def model(self) -> Model:
        """The winner, ready to run."""
        return self.bench.model(self.winner.recipe)

    @property
    def target(self) -> Any:
        return self.bench.context.target

    def complete(self) -> None:
        """Fill the evidence's `result`, so that a report can be made of the evidence alone."""
        request, evidence = self.request, self.evidence
        evidence.command = request.command
        evidence.about(request.model)
        evidence.recipe = self.winner.recipe.as_json()
        said = heard(self.bench.context.notes, self.winner.recipe)
        evidence.notes += list(dict.fromkeys([*request.model.notes, *request.notes, *said]))
        evidence.result = {
            **self._answer(),
            "candidates": [candidate.as_json() for candidate in self.candidates],
            "sites": site_bits(self.model),
            "workload": dict(self.bench.subject.describe()),
            "compared_with": f"{request.model.name}, unmodified, in the same runtime",
        }

    def _answer(self) -> dict[str, Any]:
        return {
            "met": self.met,
            "budget": str(self.request.budget),
            "minimize": self.request.objective.name,
            "baseline": self.baseline.as_json(),
            "winner": self.winner.as_json(),
            "front": [candidate.as_json() for candidate in self.front],
            "prediction_error": self.prediction_error(),
            "missed": [violation.as_json() for violation in violations(self.winner, self.request.budget)],
        }

    def prediction_error(self) -> dict[str, float]:
        """Metric -> median of |predicted - measured| / measured over all measured candidates, as proposed."""
        errors: dict[str, list[float]] = {}
        for candidate in self.candidates:
            for metric in candidate.predicted.keys() & candidate.measured.keys():
                here = candidate.measured[metric]
                if here > 0:
                    errors.setdefault(metric, []).append(abs(candidate.predicted[metric] - here) / here)
        return {metric: statistics.median(found) for metric, found in sorted(errors.items())}

    def as_json(self) -> dict[str, Any]:
        paths = {"artifact": self.artifact, "report": self.report}
        evidence = None if self.artifact is None else self.artifact / "evidence.json"
        return {
            **self._answer(),
            **{name: None if path is None else str(path) for name, path in paths.items()},
            "evidence": self.evidence.to_json() if evidence is None else str(evidence),
        }

    def save(self, folder: str | Path) -> None:
        """Write the artifact (weights, recipe, evidence, card) and the report; an artifact there is replaced whole.

        Raises `BadInput` for a folder that holds anything else, or that one is in.
        """
        check_output(Path(folder))
        self.artifact = Path(folder)
        self.evidence.result["artifact"] = str(folder)
        write_artifact(self.artifact, self.model, self.winner.recipe.to_toml(), self.evidence)
        self.report = self.artifact.with_name(self.artifact.name + ".html")
        write_report(self.report, [self.evidence])

    def table(self) -> str:
        """For people: the verdict, then baseline, front and winner side by side."""
        asked = str(self.request.budget)
        lines = [f"budget {asked}: {'MET' if self.met else 'NOT MET'}" if asked else "no budget was given"]
        lines += [f"  {violation}" for violation in violations(self.winner, self.request.budget)]
        lines += ["", _row("", [title(metric) for metric, _ in self._columns()])]
        for name, candidate in [("original", self.baseline), ("winner", self.winner)]:
            lines.append(_row(name, [_cell(candidate.measured, metric, unit) for metric, unit in self._columns()]))
            predicted = [_cell(candidate.predicted, metric, unit) for metric, unit in self._columns()]
            if any(predicted):
                lines.append(_row("  predicted", predicted))
        for candidate in self.front:
            cells = [_cell(candidate.measured, metric, unit) for metric, unit in self._columns()]
            lines.append(_row("on the front", cells))
        if "quality" in self.baseline.measured and self.front != [self.winner]:
            lines.append("quality is on held-out data, of the front on the data of the search")
        errors = ", ".join(f"{title(m)} {100 * e:.0f}%" for m, e in self.prediction_error().items())
        if errors:
            lines += ["", f"median error of predictions over {len(self.candidates)} measured recipes: {errors}"]
        lines += ["", self.evidence.table(), ""]
        if self.artifact is not None:
            lines += [f"artifact {self.artifact}", f"report   {self.report}"]
        return "\n".join(lines)

    def _columns(self) -> list[tuple[str, str]]:
        return [(metric, unit) for metric, unit in SHOWN if metric in self.baseline.measured]


def title(metric: str) -> str:
    return {"tpot_s": "per token", "latency_s": "latency", "ttft_s": "first token"}.get(metric, metric.split("_")[0])


def _cell(values: Mapping[str, float], metric: str, unit: str) -> str:
    if metric not in values:
        return ""
    return show(values[metric], unit) if unit else f"{values[metric]:.4g}"  # three digits would call 0.9996 no loss


def _row(name: str, cells: Sequence[str]) -> str:
    return "  ".join([name.ljust(14), *(cell.rjust(11) for cell in cells)]).rstrip()


def heard(notes: Sequence[str], recipe: Recipe) -> list[str]:
    """Notes ("system: ...") without those of systems that were tried and are not in the recipe."""
    others = systems().keys() - {step.system for step in recipe.steps}
    return [note for note in notes if note.partition(":")[0] not in others]
