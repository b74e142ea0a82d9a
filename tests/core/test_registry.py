"""The registry finds systems by their source alone, and a new one by its presence alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.proof import ProofContext
from headway.core.registry import entry, read_card, scan, systems

TOY = """
from headway.core.card import Card

raise RuntimeError("a scan must not run this")

SYSTEM = Card(
    slug="{slug}",
    title="Toy",
    paper="None, 2026",
    kind="transform",
    slot="weights",
    summary="does nothing",
    claim="none",
    needs=("static_weights",),
)
"""


def test_a_card_is_read_without_running_its_module(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY.format(slug="toy"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").write_text(TOY.format(slug="deep-toy"))
    (tmp_path / "other.py").write_text("SYSTEMS = 3\n")
    found = scan(tmp_path, "package")
    assert {slug: item.module for slug, item in found.items()} == {"toy": "package.toy", "deep-toy": "package.deep"}
    assert found["toy"].card.needs == ("static_weights",)


def test_two_systems_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(TOY.format(slug="toy"))
    with pytest.raises(BadInput, match="both define 'toy'"):
        scan(tmp_path, "package")


def test_a_card_that_is_no_literal_is_refused() -> None:
    with pytest.raises(BadInput, match="literal"):
        read_card(b"\nSYSTEM = Card(\n    slug=name(),\n)\n")


def test_every_card_equals_the_one_its_module_makes() -> None:
    for slug, item in systems().items():
        system = item.load()
        assert system.card == item.card
        assert system.card.slug == slug
        assert isinstance(system.card, Card)
        assert all(field.description for field in system.settings.model_fields.values()), slug


def test_every_published_system_ships_a_proof_with_a_baseline() -> None:
    import importlib
    import inspect

    for slug, item in systems().items():
        if item.card.reference:
            continue
        assert item.proof_module is not None, slug
        module = importlib.import_module(item.proof_module)
        assert module.BASELINE.strip()
        assert list(inspect.signature(module.prove).parameters) == ["context"]
        assert ProofContext.__name__ in str(inspect.signature(module.prove))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(BadInput, match="lut-gemm"):
        entry("lutgemm")


def test_names_are_readable_without_torch_numpy_or_pydantic() -> None:
    code = (
        "import sys; import headway; from headway.core.registry import systems; assert 'lut-gemm' in systems();"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'scipy', 'rich') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
