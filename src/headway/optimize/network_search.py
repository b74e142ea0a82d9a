"""`headway search`: a network found in a space under a budget, beside the largest one of that space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.core.artifact import write_artifact
from headway.core.budget import Budget
from headway.core.cache import StepCache
from headway.core.errors import BadFile, BadInput
from headway.core.evidence import Evidence
from headway.core.files import cache_folder, make_folder
from headway.core.ledger import Ledger
from headway.core.model import Model
from headway.core.progress import Progress
from headway.core.recipe import Recipe, Step
from headway.core.registry import entry, system, systems
from headway.core.system import FoundNet, SearchContext, Searcher
from headway.core.target import Target
from headway.core.units import show
from headway.optimize.candidate import Candidate, pareto
from headway.optimize.report import site_bits, write_report
from headway.optimize.request import check_output

COLUMNS = (
    ("latency", "latency_s", "s"),
    ("energy", "energy_j", "J"),
    ("size", "size_bytes", "B"),
    ("accuracy", "accuracy", ""),
    ("quality", "quality", ""),
)


@dataclass
class NetworkResult:
    """The network found, and what it was chosen from."""

    model: Model
    budget: Budget
    winner: Candidate
    baseline: Candidate
    others: Sequence[Candidate]
    evidence: Evidence
    target: Target
    artifact: Path | None = None
    report: Path | None = None

    @property
    def met(self) -> bool:
        return self.budget.met(self.winner.measured)

    def answer(self) -> dict[str, Any]:
        measured = [c for c in (self.baseline, self.winner, *self.others) if c.measured]
        return {
            "met": self.met,
            "budget": str(self.budget),
            "minimize": "latency",
            "baseline": self.baseline.as_json(),
            "winner": self.winner.as_json(),
            "front": [candidate.as_json() for candidate in pareto(measured)],
            "missed": [violation.as_json() for violation in self.budget.check(self.winner.measured)],
        }

    def as_json(self) -> dict[str, Any]:
        paths = {"artifact": self.artifact, "report": self.report}
        evidence = None if self.artifact is None else self.artifact / "evidence.json"
        return {
            **self.answer(),
            **{name: None if path is None else str(path) for name, path in paths.items()},
            "evidence": self.evidence.to_json() if evidence is None else str(evidence),
        }

    def save(self, folder: Path) -> None:
        """The artifact, and the report with its Pareto picture beside it."""
        self.artifact = folder
        self.evidence.result["artifact"] = str(folder)
        write_artifact(folder, self.model, Recipe().to_toml(), self.evidence)
        self.report = write_report(folder.with_name(f"{folder.name}.html"), [self.evidence])

    def table(self) -> str:
        """For people: the verdict, then the network found beside the largest one."""
        asked = str(self.budget)
        lines = [f"budget {asked}: {'MET' if self.met else 'NOT MET'}" if asked else "no budget was given"]
        lines += [f"  {violation}" for violation in self.budget.check(self.winner.measured)]
        columns = [column for column in COLUMNS if column[1] in self.winner.measured]
        lines += ["", "  ".join(["".ljust(12), *(name.rjust(9) for name, _, _ in columns)])]
        for name, candidate in (("largest", self.baseline), ("winner", self.winner)):
            cells = [show(candidate.measured[key], unit).rjust(9) for _, key, unit in columns]
            lines.append("  ".join([name.ljust(12), *cells]))
        predicted = {**self.winner.predicted}
        if "latency_s" in predicted:
            lines.append("  ".join(["  predicted".ljust(12), show(predicted["latency_s"], "s").rjust(9)]))
        lines += ["", str(self.winner.recipe)]
        lines += [f"note: {note}" for note in self.evidence.notes]
        if self.artifact is not None:
            lines += [f"artifact {self.artifact}", f"report   {self.report}"]
        return "\n".join(lines)


def search_network(
    slug: str,
    space: str,
    budget: str,
    settings: Sequence[str],
    *,
    data: Path | None,
    output: Path | None,
    target: Target,
    threads: int,
    seed: int,
    command: str,
    progress: Progress,
) -> NetworkResult:
    """Search, save and keep the evidence. Everything given is checked before anything is measured."""
    context = SearchContext(target, StepCache(), make_folder(cache_folder("search")), data, seed, progress)
    found_system, values, asked = checked(slug, space, budget, settings, data, output)
    ledger = Ledger.open()  # one that cannot be written is found before hours of search
    found = found_system.search(space, asked, values, context)

    def candidate(net: FoundNet) -> Candidate:
        return Candidate(Recipe((Step(slug, net.settings),)), net.predicted, net.measured)

    evidence = Evidence.begin("search", slug, target, seed, threads).about(found.model)
    evidence.command = command
    evidence.notes += list(found.notes)
    winner, baseline = candidate(found.winner), candidate(found.baseline)
    others = [candidate(net) for net in found.others]
    result = NetworkResult(found.model, asked, winner, baseline, others, evidence, target)
    evidence.recipe = winner.recipe.as_json()
    evidence.result = {
        **result.answer(),
        "candidates": [other.as_json() for other in others],
        "sites": site_bits(found.model),
        "compared_with": f"the largest network of {space}, trained in the same way",
    }
    if output is not None:
        result.save(output)
    ledger.append(evidence)
    return result


def checked(
    slug: str, space: str, budget: str, settings: Sequence[str], data: Path | None, output: Path | None
) -> tuple[Searcher[Any], Any, Budget]:
    """The system, its settings and the budget; raises `BadInput` for what cannot be asked of it."""
    card = entry(slug).card
    searcher = system(slug) if card.kind == "model" else None
    if not isinstance(searcher, Searcher):
        searchers = [s for s, e in systems().items() if e.card.kind == "model" and isinstance(system(s), Searcher)]
        raise BadInput(f"{slug} searches no networks", f"these do: {', '.join(sorted(searchers))}")
    if space not in searcher.spaces():
        known = "; ".join(f"{name}: {what}" for name, what in searcher.spaces().items())
        raise BadInput(f"{slug} has no space {space!r}", known)
    values = searcher.settings.parse(Recipe.parse(f"{slug}({', '.join(settings)})").steps[0].settings, slug)
    asked = Budget.parse(budget)
    for limit in asked.limits:
        if limit.metric not in searcher.limits or limit.quantity.dimension.endswith("per token"):
            raise BadInput(f"{slug} cannot search under {limit.text}", f"limit {', '.join(searcher.limits)}")
    if data is not None and not data.is_file():
        raise BadFile(data, 0, "no such file", "give a .npz file with arrays `images` and `labels`")
    if output is not None:
        check_output(output)
    return searcher, values, asked
