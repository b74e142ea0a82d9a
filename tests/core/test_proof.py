"""A proof's evidence names the model that it measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from test_target import example

from headway.core import proof
from headway.core.card import Card
from headway.core.evidence import Evidence
from headway.core.registry import Entry


class Named:
    given = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def fingerprint(self) -> str:
        return f"of {self.name}"


@pytest.mark.parametrize(("loads", "about", "expected"), [("ab", "", "a"), ("ab", "c", "c"), ("", "", None)])
def test_evidence_is_about_the_model_named_else_the_first_one_loaded(
    loads: str, about: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove(context: proof.ProofContext) -> Evidence:
        evidence = context.begin("toy", 1)
        assert [context.load(name).name for name in loads] == list(loads)
        if about:
            evidence.about(context.load(about))
        evidence.bar("a", "", "", "", True)
        return evidence

    found = Entry(Card("toy", "t", "p", "transform", "weights", "s", "c"), "toy")
    load: Any = Named
    monkeypatch.setattr(Entry, "proof_module", "toy_proof")
    monkeypatch.setattr(Entry, "imported", lambda *_: SimpleNamespace(prove=prove, BASELINE="none"))
    evidence, _ = proof.run(found, proof.ProofContext(example(), load))
    wanted = {"name": expected, "fingerprint": f"of {expected}"} if expected else {}
    assert evidence.model == wanted
