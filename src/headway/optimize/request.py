"""`Request`: everything a user asks of one optimisation; what cannot work is refused before a model is loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.core.artifact import check_place
from headway.core.budget import METRICS, Budget, Objective
from headway.core.errors import BadInput, Lacking
from headway.core.files import check_writable
from headway.core.model import Model
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.core.registry import entry, system, systems
from headway.core.slots import slot
from headway.core.target import Target
from headway.optimize.applying import prepared
from headway.optimize.report import is_report
from headway.optimize.subject import Subject

MEASURED = {
    "language": ("tpot_s", "ttft_s", "throughput_tok_s", "kl", "top1_agreement"),
    "classification": ("latency_s", "throughput_per_s", "top1_agreement"),
}
"""What is measured of a task besides memory, size and quality."""


POWERCAP = Path("/sys/class/powercap")
"""Where Linux has the energy counters of processors, AMD's too."""


@dataclass
class Request:
    """`only` and `without` name systems; `recipe` is a fixed part that every candidate begins with."""

    subject: Subject
    target: Target
    budget: Budget = field(default_factory=Budget)
    objective: Objective = field(default_factory=Objective)
    calibration: Sequence[tuple[Any, ...]] = ()
    """Inputs for the systems that ask for some."""
    recipe: Recipe = field(default_factory=Recipe)
    searches: bool = True
    """False: the recipe alone is applied and measured."""
    only: Sequence[str] = ()
    without: Sequence[str] = ()
    time_s: float = 240.0
    """Seconds of search since `began`; the proof comes on top."""
    began: float = field(default_factory=time.monotonic)
    """By the monotonic clock: loading the model and measuring the machine count."""
    threads: int = 1
    seed: int = 0
    output: Path | None = None
    command: str = ""
    notes: Sequence[str] = ()
    """Sentences for the evidence, known before anything is run."""
    progress: Progress = field(default_factory=Progress)

    @property
    def model(self) -> Model:
        return self.subject.model


def refuse(
    recipe: Recipe,
    *,
    budget: Budget | None = None,
    objective: Objective | None = None,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    output: Path | None = None,
) -> None:
    """Raise for everything that cannot work whatever the model; nothing is loaded, measured or written.

    `BadInput` for the request itself, `Lacking` for what this machine cannot measure.
    """
    for slug in only:
        system(slug)
    for slug in without:
        entry(slug)
    both = set(only) & set(without)
    if both:
        raise BadInput(f"{min(both)} is both asked for and excluded", "name it in --only or in --without")
    for step in recipe.steps:
        if step.system in without:
            raise BadInput(
                f"{step.system} is in the fixed recipe and excluded", "take it out of --recipe or of --without"
            )
    prepared(recipe)
    searched = {
        slug
        for slug, found in systems().items()
        if found.card.kind in ("transform", "policy") and slot(found.card.slot).searched
    }
    if not (searched & set(only or searched)) - set(without):
        raise BadInput("nothing is left to search", "exclude fewer systems, or use headway apply")
    metrics = [limit.metric for limit in (budget or Budget()).limits]
    if "energy" in (*metrics, (objective or Objective()).name):
        counted = any(os.access(path, os.R_OK) for path in POWERCAP.glob("intel-rapl*/energy_uj"))
        why = "energy is not measured yet" if counted else "this machine has no energy counter that can be read"
        raise Lacking(why, "ask for latency, memory or size instead")
    if "cost" in metrics:
        raise BadInput("cost is no property of a model", "limit latency, throughput or memory instead")
    if output is not None:
        check_output(output)


def refuse_for(model: Model, budget: Budget, own_quality: bool) -> None:
    """Raise `BadInput` for a limit on what is never measured of such a model."""
    measured = {"memory_bytes", "size_bytes", "quality"}
    measured |= set(MEASURED.get(model.task, ("latency_s", "throughput_per_s")))
    if own_quality:
        measured -= {"kl", "top1_agreement"}
    for limit in budget.limits:
        if not measured & set(METRICS[limit.metric].measured[limit.quantity.dimension]):
            raise BadInput(
                f"budget: {limit.text}: that is not measured of {model.name}",
                f"measured are: {', '.join(sorted(measured))}",
            )


def check_output(folder: Path) -> None:
    """Raise `BadInput` unless an artifact can be written there; leaves nothing behind."""
    mend = "choose another folder"
    if Path.cwd().is_relative_to(folder.resolve()):
        raise BadInput(f"{folder} is the folder you are in, which an artifact would replace", mend)
    check_place(folder)
    parent = folder.absolute().parent
    report = parent / f"{folder.name}.html"
    if report.exists() and not is_report(report):
        raise BadInput(f"{report}, where the report goes, is there and is no report", mend)
    check_writable(parent, mend)
