"""`Request`: everything a user asks of one optimisation, validated before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headway.core import compatibility
from headway.core.budget import Budget, Objective
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.core.registry import entry
from headway.core.target import Target
from headway.core.workload import Workload


@dataclass
class Request:
    """`only` and `without` name systems; `recipe` is a fixed part that every candidate begins with."""

    model: Model
    target: Target
    budget: Budget = field(default_factory=Budget)
    objective: Objective = field(default_factory=Objective)
    workload: Workload = field(default_factory=Workload)
    recipe: Recipe = field(default_factory=Recipe)
    only: Sequence[str] = ()
    without: Sequence[str] = ()
    time_s: float = 240.0
    """Seconds of search; the proof comes on top."""
    threads: int = 1
    seed: int = 0
    output: Path | None = None
    command: str = ""
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        for slug in (*self.only, *self.without):
            entry(slug)
        both = set(self.only) & set(self.without)
        if both:
            raise BadInput(f"{min(both)} is both asked for and excluded", "name it in --only or in --without")
        compatibility.check(self.recipe)
        if self.output is not None and self.output.exists() and not (self.output / "headway.json").is_file():
            raise BadInput(f"{self.output} exists and is no artifact", "choose another folder for -o")
