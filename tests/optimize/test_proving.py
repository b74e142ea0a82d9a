"""What is said of the winner is what held-out data say: of those proven, the one that holds, or misses least."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headway.core.budget import Budget, Objective
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.optimize.candidate import Candidate
from headway.optimize.pipeline import Proof, Search

INT8, INT4 = Recipe.read("int8"), Recipe.read("int4")
NONE = Recipe()


class Proving:
    """A bench whose proofs find the given quality and time."""

    def __init__(self, found: Mapping[str, tuple[float, float]]) -> None:
        self.found = found

    def prove(self, candidate: Candidate, evidence: Any, rounds: int) -> tuple[Candidate, dict[str, float]]:
        quality, seconds = self.found[str(candidate.recipe)]
        return candidate.with_measured(quality=quality, tpot_s=seconds), {"quality": 0.99, "tpot_s": 5 * seconds}


def searched(candidates: list[Candidate], found: Mapping[str, tuple[float, float]]) -> Search:
    search = Search.__new__(Search)
    budget, objective = Budget.parse("quality>=0.9"), Objective.parse("latency")
    search.request = cast(Any, SimpleNamespace(budget=budget, objective=objective, progress=Progress()))
    search.bench, search.measured, search.training = cast(Any, Proving(found)), candidates, NONE
    search.evidence = lambda verb: cast(Any, verb)  # type: ignore[method-assign]
    return search


def candidate(recipe: Recipe, quality: float, seconds: float) -> Candidate:
    return Candidate(recipe, measured={"quality": quality, "tpot_s": seconds})


SEARCHED = [candidate(NONE, 1.0, 3.0), candidate(INT8, 0.97, 2.0), candidate(INT4, 0.95, 1.0)]


def test_what_does_not_hold_on_held_out_data_gives_way_to_the_next() -> None:
    proof = searched(SEARCHED, {"int4": (0.85, 1.0), "int8": (0.96, 2.0), "(unmodified)": (1.0, 3.0)}).prove()
    assert proof.candidate.recipe == INT8
    assert not proof.missed
    assert proof.candidate.measured["quality"] == 0.96


def test_where_none_holds_there_the_one_that_misses_least_is_shown() -> None:
    found = {"int4": (0.89, 1.0), "int8": (0.8, 2.0), "(unmodified)": (0.7, 3.0)}
    proof = searched(SEARCHED, found).prove()
    assert proof.candidate.recipe == INT4
    assert [violation.metric for violation in proof.missed] == ["quality"]
    nothing = searched([candidate(INT4, 0.5, 1.0)], {"int4": (0.95, 1.0)}).prove()
    assert not nothing.missed  # a search that was too pessimistic


@pytest.mark.parametrize(("quality", "met"), [(0.89, False), (0.95, True)])
def test_the_answer_and_the_original_are_those_of_the_proof(quality: float, met: bool) -> None:
    search = searched(SEARCHED[2:], {"int4": (quality, 0.7)})
    proof: Proof = search.prove_one(SEARCHED[2], "apply")
    result = proof.result(search, candidate(NONE, 1.0, 3.0), SEARCHED, SEARCHED)
    assert result.met is met
    assert result.winner.measured == {"quality": quality, "tpot_s": 0.7}
    assert result.baseline.measured == {"quality": 0.99, "tpot_s": 3.5}
