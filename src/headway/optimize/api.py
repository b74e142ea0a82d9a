"""The Python face: `load`, `optimize`, `apply`, `prove`. The command line calls nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.core import proof as proofs
from headway.core.budget import Budget, Objective
from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger
from headway.core.model import Model
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.core.registry import Entry, entry, systems
from headway.core.system import Context
from headway.core.target import Target
from headway.core.workload import Workload
from headway.optimize.applying import apply_recipe, prepared
from headway.optimize.load import load

__all__ = ["Proof", "apply", "context_for", "load", "optimize", "prove", "use_threads"]


def use_threads(threads: int) -> int:
    """Set how many threads torch and the native kernels use; 0: every usable core. Gives the number."""
    import os

    from headway.kernels import cpu

    count = threads or len(os.sched_getaffinity(0))
    cpu.set_threads(count)
    try:
        import torch
    except ModuleNotFoundError:
        return count
    torch.set_num_threads(count)
    return count


def machine(progress: Progress | None = None) -> Target:
    """This machine, measured once and remembered."""
    from headway.hardware.probe import current_target

    return current_target(progress)


def optimize(
    model: Any,
    *,
    budget: str | Budget = "",
    minimize: str | Objective = "latency",
    sample: Any = None,
    recipe: str | Recipe = "",
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    target: Target | None = None,
    workload: Workload | None = None,
    time_s: float = 240.0,
    output: str | Path | None = None,
    threads: int = 0,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Any:
    """Bring a model under a budget; gives a `Result` (see `headway.optimize.result`).

    Everything is validated before anything is loaded or run. Raises `BadInput` for what cannot be asked.
    """
    parsed = Budget.parse(budget) if isinstance(budget, str) else budget
    objective = Objective.parse(minimize) if isinstance(minimize, str) else minimize
    fixed = Recipe.read(recipe) if isinstance(recipe, str) else recipe
    prepared(fixed)
    from headway.optimize.pipeline import optimize as run
    from headway.optimize.request import Request

    count = use_threads(threads)
    progress = progress or Progress()
    return run(
        Request(
            load(model, sample),
            target or machine(progress),
            parsed,
            objective,
            workload or Workload(),
            fixed,
            only,
            without,
            time_s,
            count,
            seed,
            None if output is None else Path(output),
            command,
            progress,
        )
    )


def context_for(model: Model, workload: Workload, threads: int, seed: int, progress: Progress) -> Context:
    """What systems may use besides the model, calibration inputs included."""
    from headway.optimize.subjects import make_subject

    bare = model.task != "language" and workload.data is None and getattr(model, "workload_of", None) is None
    # A module that brings no data is calibrated on the sample it was loaded with.
    calibration = [getattr(model, "sample")] if bare else make_subject(model, workload).calibration()  # noqa: B009
    return Context(machine(progress), calibration, StepCache(), threads, seed, progress)


def apply(
    recipe: str | Recipe,
    model: Any,
    *,
    sample: Any = None,
    workload: Workload | None = None,
    threads: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Model:
    """The model with the recipe applied; no search, nothing measured."""
    parsed = Recipe.read(recipe) if isinstance(recipe, str) else recipe
    prepared(parsed)
    count = use_threads(threads)
    loaded = load(model, sample)
    context = context_for(loaded, workload or Workload(), count, seed, progress or Progress())
    return apply_recipe(parsed, loaded, context)


def apply_and_save(
    recipe: str | Recipe,
    model: Any,
    output: str | Path,
    *,
    workload: Workload | None = None,
    threads: int = 0,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Any:
    """Apply one recipe, measure it beside the unmodified model on held-out data and save the artifact: a `Result`."""
    parsed = Recipe.read(recipe) if isinstance(recipe, str) else recipe
    prepared(parsed)
    from headway.optimize.pipeline import measure_recipe
    from headway.optimize.request import Request

    count = use_threads(threads)
    progress = progress or Progress()
    request = Request(
        load(model),
        machine(progress),
        workload=workload or Workload(),
        recipe=parsed,
        threads=count,
        seed=seed,
        output=Path(output),
        command=command,
        progress=progress,
    )
    return measure_recipe(request)


@dataclass(frozen=True)
class Proof:
    """One proof that ran here."""

    entry: Entry
    baseline: str
    evidence: Evidence
    target: Target

    @property
    def met(self) -> bool:
        return self.evidence.met

    def as_json(self) -> dict[str, Any]:
        card = self.entry.card
        return {
            "system": card.slug,
            "claim": card.claim,
            "baseline": self.baseline,
            "bars": [bar.as_json() for bar in self.evidence.bars],
            "met": self.met,
            "evidence": self.evidence.to_json(),
        }

    def table(self) -> str:
        card = self.entry.card
        return "\n".join(
            [f"{card.slug}: {card.title}", f"claim: {card.claim}", f"against: {self.baseline}", self.evidence.table()]
        )


def prove(
    *slugs: str,
    quick: bool = False,
    model: str = "",
    threads: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Proof]:
    """Run the proofs of these systems (all that ship one, when none is named); each is kept in the ledger."""
    chosen = [entry(slug) for slug in slugs] or [
        found for found in systems().values() if found.proof_module is not None
    ]
    for found in chosen:
        if found.proof_module is None:
            raise BadInput(f"{found.card.slug} ships no proof", "see: headway systems")
    count = use_threads(threads)
    progress = progress or Progress()
    target = machine(progress)
    done = []
    for found in chosen:
        context = proofs.ProofContext(target, load, model, quick, count, seed, progress)
        evidence, baseline = proofs.run(found, context)
        Ledger.open().append(evidence)
        done.append(Proof(found, baseline, evidence, target))
    return done
