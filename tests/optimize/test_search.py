"""Proposals hold what is limited besides the objective, also where that costs the objective."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from headway.core.budget import Budget, Objective
from headway.core.model import Site
from headway.core.recipe import Recipe
from headway.optimize.candidate import violations
from headway.optimize.search import Corrections, Space, propose
from headway.optimize.table import KEEP, Choice, ChoiceTable

SITES = 6
SECONDS = {"f": 1.0, "int4": 1.5}
"""Of a site: what is smaller is slower."""


def space() -> Space:
    sites = tuple(Site(f"layers.{at}.w", 1, 1) for at in range(SITES))
    loss, nbytes = np.zeros((SITES, 2)), np.full((SITES, 2), 10.0)
    loss[:, 1], nbytes[:, 1] = 0.005, 5.0
    seconds = np.tile(list(SECONDS.values()), (SITES, 1))
    forms = tuple(tuple(SECONDS) for _ in range(SITES))
    table = ChoiceTable(sites, (KEEP, Choice("int4", ())), loss, nbytes, seconds, forms)
    return Space(table, {}, Recipe(), lambda recipe: cast(Any, None))


def predicted(target: Any, stored: Any, threads: int, model: Any) -> dict[str, dict[str, float]]:
    return {
        "size_bytes": {"weights": sum(nbytes for _, nbytes in stored.values())},
        "latency_s": {"weights": sum(SECONDS[form] for form, _ in stored.values())},
    }


@pytest.mark.parametrize(
    ("budget", "objective", "sites"),
    [
        ("size<=45B, quality>=0.9", "latency", 3),
        ("size<=30B, quality>=0.9", "latency", 6),
        ("quality>=0.9", "latency", 0),
        ("latency<=7s, quality>=0.9", "size", 2),
        ("quality>=0.9", "size", 6),
    ],
)
def test_a_limit_that_costs_the_objective_is_held_at_the_least_price(budget: str, objective: str, sites: int) -> None:
    subject: Any = SimpleNamespace(predict=predicted)
    asked, aim = Budget.parse(budget), Objective.parse(objective)
    found = propose(space(), subject, cast(Any, None), 1, asked, aim, Corrections(), 40, 0)
    assert not violations(found[0], asked)
    # All of one price per site: the allocation knows no halves, so that it may take one more than it needs.
    smaller = round((60 - found[0].predicted["size_bytes"]) / 5)
    assert abs(smaller - sites) <= (2 if sites in (2, 3) else 0)
