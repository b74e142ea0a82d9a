"""What weight systems share: which sites they take, what the cache remembers, and codes kept as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_net import context as small_context
from small_net import small_model
from torch import nn

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.model import Site
from headway.core.module_model import ModuleModel
from headway.core.registry import system
from headway.core.system import Context
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.grouped import Int4Weight, Int8Weight
from headway.llm.weights.int4 import Int4, Int4Settings
from headway.llm.weights.int8 import Int8, Int8Settings
from headway.llm.weights.quantizers import copied, rtn
from headway.llm.weights.transform import Matrix


def model(seed: int = 0) -> ModuleModel:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.Conv1d(4, 4, 1), nn.Linear(64, 5))
    return ModuleModel(net, torch.randn(4, 64), task="classification")


def context(cache: StepCache | None = None, inputs: int = 3) -> Context:
    torch.manual_seed(1)
    given: Any = [(torch.randn(4, 64),) for _ in range(inputs)]
    return Context(target=None, calibration=given, cache=cache, threads=2)  # type: ignore[arg-type]


def test_only_and_skip_choose_and_heads_stay_unless_named() -> None:
    sites = [Site("layers.0.q", 4, 4), Site("layers.0.up", 4, 4), Site("head", 9, 4, "head")]

    def taken(**patterns: Any) -> list[str]:
        return [site.name for site in Int4().taken(Int4Settings(**patterns), sites)]

    assert taken() == ["layers.0.q", "layers.0.up"]
    assert taken(skip="*.up") == ["layers.0.q"]
    assert taken(only=("head", "*.q")) == ["layers.0.q", "head"]
    assert taken(only="*", skip="head") == ["layers.0.q", "layers.0.up"]


@given(
    seed=st.integers(0, 2**20),
    group=st.sampled_from([16, 48, 64]),
    columns=st.integers(1, 130),
    size=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
)
def test_eight_bits_err_by_half_a_step_of_their_group(seed: int, group: int, columns: int, size: float) -> None:
    w = (size * np.random.default_rng(seed).standard_t(3, (5, columns))).astype(np.float32)
    made = Int8().make(Matrix(Site("a", 5, columns), w, None), Int8Settings(group_size=group)).dequantize()
    for at in range(0, columns, group):
        part, error = w[:, at : at + group], np.abs(made - w)[:, at : at + group]
        step = np.abs(part).max(axis=1, keepdims=True) / 127
        # The scale is a float16, at most 2^-11 off, 127 steps from zero.
        assert (error <= step * (0.5 + 127 * 2.0**-11) * (1 + 1e-5)).all()


@pytest.mark.parametrize("quantizer", ["gptq", "rtn"])
def test_every_site_is_replaced_and_the_answer_stays_near(quantizer: str) -> None:
    before = model()
    after = Int4().apply(before, Int4Settings(group_size=32, quantizer=quantizer), context())
    x = torch.randn(4, 64)
    assert all(isinstance(after.weight(site.name), Int4Weight) for site in before.sites())
    assert not any(isinstance(before.weight(site.name), Int4Weight) for site in before.sites())
    error = (after(x) - before(x)).norm() / before(x).norm()
    assert 0 < error < 0.2


def test_stored_bytes_are_what_making_gives() -> None:
    before = model()
    for found, settings in ((Int4(), Int4Settings(group_size=48, quantizer="rtn")), (Int8(), Int8Settings())):
        after = found.apply(before, settings, context())
        for site in before.sites():
            weight = after.weight(site.name)
            assert found.stored(site, settings) == (weight.form, weight.nbytes)


def test_recipes_that_treat_a_site_alike_share_its_result(tmp_path: Path) -> None:
    cache = StepCache(tmp_path)
    before = model()
    whole = Int4().apply(before, Int4Settings(), context(cache))
    made = cache.misses
    given = context(cache)
    given.original = before
    first = Int4().apply(before, Int4Settings(only="0"), given)
    both = Int4().apply(first, Int4Settings(skip="0"), given)
    assert cache.misses == made
    for site in before.sites():
        np.testing.assert_array_equal(both.weight(site.name).dequantize(), whole.weight(site.name).dequantize())
    Int4().apply(before, Int4Settings(group_size=32), context(cache))
    assert cache.misses == made + len(before.sites())


def test_a_weight_from_the_cache_is_the_weight_that_was_made(tmp_path: Path) -> None:
    before = model()
    fresh = Int8().apply(before, Int8Settings(), context())
    for _ in range(2):
        cached = Int8().apply(before, Int8Settings(), context(StepCache(tmp_path)))
        for site in before.sites():
            a, b = fresh.weight(site.name), cached.weight(site.name)
            assert isinstance(b, Int8Weight)
            np.testing.assert_array_equal(a.dequantize(), b.dequantize())


def test_a_system_that_was_edited_makes_its_weights_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, before = StepCache(tmp_path), model()
    Int8().apply(before, Int8Settings(), context(cache))
    made = cache.misses
    Int8().apply(before, Int8Settings(), context(cache))
    assert cache.misses == made
    monkeypatch.setattr("headway.llm.weights.transform.source_digest", lambda module: "edited since")
    Int8().apply(before, Int8Settings(), context(cache))
    assert cache.misses == 2 * made


def test_calibration_is_asked_for_where_it_is_missing() -> None:
    with pytest.raises(BadInput, match="no calibration inputs"):
        Int4().apply(model(), Int4Settings(), context(inputs=0))
    Int4().apply(model(), Int4Settings(quantizer="rtn"), context(inputs=0))


def test_codes_that_fit_are_kept_as_they_are() -> None:
    rng = np.random.default_rng(0)
    held = Int4Weight(
        rng.integers(0, 16, (6, 100), dtype=np.uint8),
        rng.uniform(0.01, 0.02, (6, 4)).astype(np.float16),
        rng.normal(0, 0.1, (6, 4)).astype(np.float16),
        group_size=32,
    )
    for group in (16, 32):
        found = copied(held, 4, group)
        assert found is not None
        np.testing.assert_array_equal(found.dequantize(), held.dequantize())
    assert copied(held, 3, 32) is None
    assert copied(held, 4, 64) is None
    assert copied(Int8Weight(held.codes().view(np.int8), held.scale, held.minimum, group_size=32), 4, 32) is None


def test_applying_the_grid_a_weight_has_already_changes_nothing() -> None:
    before = model()
    three = rtn(before.weight("0").dequantize(), 3, 64)
    planes = BitPlanes.from_codes(three.codes, three.scale, three.minimum, bits=3, group_size=64)
    held = before.with_weights({"0": planes})
    after = Int4().apply(held, Int4Settings(group_size=64, only="0"), context())
    assert isinstance(after.weight("0"), Int4Weight)
    np.testing.assert_array_equal(after.weight("0").dequantize(), planes.dequantize())


@pytest.mark.parametrize("slug", ["lut-gemm", "bipolar-int"])
def test_weights_that_are_not_finite_are_refused(slug: str) -> None:
    found, model = system(slug), small_model()
    bad = model.weight("out").dequantize().copy()
    bad[3, 7] = np.nan
    settings = found.settings.parse({"quantizer": "rtn"}, slug)
    with pytest.raises(BadInput, match=r"weight of out is not finite at \(3, 7\)"):
        found.apply(model.with_weights({"out": DenseWeight(bad)}), settings, small_context())
