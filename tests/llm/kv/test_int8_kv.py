"""`kv-int8` as users meet it: in a recipe, in an artifact, in predictions and in the search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import TinyFolder

import headway
from headway.core.budget import Budget
from headway.core.errors import BadInput
from headway.core.recipe import Recipe
from headway.core.workload import Workload
from headway.llm.language_model import LanguageModel
from headway.optimize.api import machine
from headway.optimize.dry_run import dry_run

TOKENS = list(range(3, 90))


@pytest.fixture
def tiny(tmp_path: Path, home: Path) -> LanguageModel:
    return headway.load(str(TinyFolder(tmp_path / "tiny").path))


def test_a_recipe_changes_keys_and_values_alone(tiny: LanguageModel) -> None:
    coded = headway.apply("kv-int8", tiny, threads=1)
    plain, other = tiny.logits(TOKENS), coded.logits(TOKENS)
    assert 0 < np.abs(plain - other).max() < 0.1 * np.abs(plain).max()
    assert coded.size_bytes() == tiny.size_bytes()
    assert coded.fingerprint() != tiny.fingerprint()
    assert all(coded.weight(site.name) is tiny.weight(site.name) for site in tiny.sites())
    with_weights = headway.apply("int8 + kv-int8", tiny, threads=1)
    assert with_weights.kv == "int8"
    exact = coded.with_runtime("exact"), tiny.with_runtime("exact")
    assert np.array_equal(exact[0].logits(TOKENS), exact[1].logits(TOKENS))


def test_an_artifact_keeps_it(tiny: LanguageModel, tmp_path: Path) -> None:
    coded = headway.apply("kv-int8", tiny, threads=1)
    coded.save(tmp_path / "saved")
    again = headway.load(str(tmp_path / "saved"))
    assert again.kv == "int8"
    assert again.fingerprint() == coded.fingerprint()
    assert np.array_equal(again.logits(TOKENS), coded.logits(TOKENS))


def test_its_pages_are_predicted_as_they_are(tiny: LanguageModel) -> None:
    target, budget = machine(), Budget.parse("quality>=0.5")
    plans = [dry_run(tiny, budget, target, Workload(), Recipe.parse(text), 1) for text in ("int8", "int8 + kv-int8")]
    shares = plans[1].owners["kv"] / plans[0].owners["kv"]
    dim = tiny.architecture.head_dim
    assert shares == pytest.approx((1 + 4 / dim) / 2)
    session = headway.apply("kv-int8", tiny, threads=1).runtime.begin(8)
    session.feed(np.arange(3, 11))
    padded = -(-dim // 16) * 16
    page = 64 * tiny.architecture.kv_heads * (dim + padded + 2 * 4)
    assert session.nbytes == page * len(tiny.architecture.layers)


def test_what_cannot_be_is_refused(tiny: LanguageModel) -> None:
    net = headway.load(torch.nn.Linear(4, 4), sample=torch.zeros(1, 4))
    with pytest.raises(BadInput, match="no keys and values"):
        headway.apply("kv-int8", net)
    with pytest.raises(BadInput, match="kv"):
        headway.apply("kv-int8 + kv-int8", tiny)
    with pytest.raises(BadInput, match="forms are"):
        tiny.with_kv("int3")  # type: ignore[arg-type]


def test_the_search_takes_it_where_it_saves(tiny: LanguageModel) -> None:
    found = headway.optimize(tiny, budget="quality>=0.5", minimize="memory", only=["kv-int8"], time_s=20.0, threads=1)
    assert found.met
    assert any("kv-int8" in str(candidate.recipe) for candidate in found.candidates)
