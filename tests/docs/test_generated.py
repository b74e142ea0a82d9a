"""Text of cards and evidence goes into generated pages as it is, whatever Markdown it looks like."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import markdown
import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_text import ROOT

from headway.core.evidence import Evidence
from headway.core.ledger import Ledger
from headway.core.registry import systems


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "scripts" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = load()


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_a_cell_reads_as_the_text_that_went_in(text: str) -> None:
    html = markdown.markdown(docs.table(("a", "b"), [(docs.plain(text), "x")]), extensions=["tables"])
    cell = html.partition("<td>")[2].partition("</td>")[0]
    shown = cell.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert shown == text


def test_the_last_evidence_is_on_the_page_of_its_system(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    entry = next((found for found in systems().values() if found.proof_module), None)
    if entry is None:
        pytest.fail("no registered system ships a proof")
    assert "no evidence" in docs.system_page(entry, ledger)
    evidence = Evidence("prove", entry.card.slug, {"name": "m", "fingerprint": "f"}, seed=0, threads=1)
    evidence.bar("speed | L2", "2.1x", ">= 1.2", "1.1", met=False)
    ledger.append(evidence)
    page = docs.system_page(entry, ledger)
    assert "speed \\| L2" in page and "**missed**" in page


def test_bounds_are_written_for_people() -> None:
    from pydantic import BaseModel, Field

    class Settings(BaseModel):
        size: int = Field(64, ge=16, lt=1024, multiple_of=16)
        name: str = "x"

    fields = Settings.model_fields
    assert docs._bounds(fields["size"].metadata) == "≥ 16, < 1024, multiple of 16"
    assert docs._bounds(fields["name"].metadata) == ""


def test_kinds_are_written_for_people() -> None:
    from typing import Literal

    said = [docs._kind(kind) for kind in (int, Literal["a", "b", 3], Literal["a"], int | None, tuple[str, ...])]
    assert said == ["whole number", "`a`, `b` or `3`", "`a`", "whole number or unset", "list of text"]
