"""`kv-int8` and `kv-int4` as users meet them: in a recipe, in an artifact, in predictions and in the search."""

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
STORES = pytest.mark.parametrize(
    ("step", "store", "keys", "values"),
    [("kv-int8", "int8", 8, 8), ("kv-int4", "k8v4", 8, 4), ("kv-int4(keys=4)", "int4", 4, 4)],
)


@pytest.fixture
def tiny(tmp_path: Path, home: Path) -> LanguageModel:
    return headway.load(str(TinyFolder(tmp_path / "tiny").path))


@STORES
def test_a_recipe_changes_keys_and_values_alone(
    tiny: LanguageModel, step: str, store: str, keys: int, values: int
) -> None:
    coded = headway.apply(step, tiny, threads=1)
    plain, other = tiny.logits(TOKENS), coded.logits(TOKENS)
    assert 0 < np.abs(plain - other).max() < 2**-values * 25 * np.abs(plain).max()
    assert coded.size_bytes() == tiny.size_bytes()
    assert coded.fingerprint() != tiny.fingerprint()
    assert all(coded.weight(site.name) is tiny.weight(site.name) for site in tiny.sites())
    with_weights = headway.apply(f"int8 + {step}", tiny, threads=1)
    assert with_weights.kv == store
    exact = coded.with_runtime("exact"), tiny.with_runtime("exact")
    assert np.array_equal(exact[0].logits(TOKENS), exact[1].logits(TOKENS))


@STORES
def test_an_artifact_keeps_it(
    tiny: LanguageModel, tmp_path: Path, step: str, store: str, keys: int, values: int
) -> None:
    coded = headway.apply(step, tiny, threads=1)
    coded.save(tmp_path / "saved")
    again = headway.load(str(tmp_path / "saved"))
    assert again.kv == store
    assert again.fingerprint() == coded.fingerprint()
    assert np.array_equal(again.logits(TOKENS), coded.logits(TOKENS))


@STORES
def test_its_pages_are_predicted_as_they_are(
    tiny: LanguageModel, step: str, store: str, keys: int, values: int
) -> None:
    target, budget = machine(), Budget.parse("quality>=0.5")
    recipes = ("int8", f"int8 + {step}")
    plans = [dry_run(tiny, budget, target, Workload(), Recipe.parse(text), 1) for text in recipes]
    shares = plans[1].owners["kv"] / plans[0].owners["kv"]
    dim = tiny.architecture.head_dim
    assert shares == pytest.approx(((keys + values) / 16 + 4 / dim) / 2)
    session = headway.apply(step, tiny, threads=1).runtime.begin(8)
    session.feed(np.arange(3, 11))
    quad, block = 32 // keys, 128 // values  # dimensions of 4 bytes of keys, and of 16 of values
    token = 4 * -(-dim // quad) + 16 * -(-dim // block) + 2 * 4
    page = 64 * tiny.architecture.kv_heads * token
    assert session.nbytes == page * len(tiny.architecture.layers)


def test_what_cannot_be_is_refused(tiny: LanguageModel) -> None:
    net = headway.load(torch.nn.Linear(4, 4), sample=torch.zeros(1, 4))
    with pytest.raises(BadInput, match="no keys and values"):
        headway.apply("kv-int8", net)
    with pytest.raises(BadInput, match="kv"):
        headway.apply("kv-int8 + kv-int4", tiny)
    with pytest.raises(BadInput, match="forms are"):
        tiny.with_kv("int3")  # type: ignore[arg-type]


@STORES
@pytest.mark.usefixtures("short_search")
def test_the_search_takes_it_where_it_saves(tiny: LanguageModel, step: str, store: str, keys: int, values: int) -> None:
    system = step.partition("(")[0]
    found = headway.optimize(tiny, budget="quality>=0.5", minimize="memory", only=[system], time_s=20.0, threads=1)
    assert found.met
    assert any(step in str(candidate.recipe) for candidate in found.candidates)
