"""The system `lut-gemm`: what it takes, what it makes of linear and convolution layers, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_net import context, small_model

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.registry import entry
from headway.core.system import Context
from headway.kernels.cpu import _cpu
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.lut_gemm import LutGemm, measured_crossover
from headway.llm.weights.quantizers import rtn
from headway.llm.weights.quantizers_bcq import bcq

SYSTEM = LutGemm()


@pytest.fixture(scope="module")
def model() -> ModuleModel:
    return small_model()


def settings(**values: Any) -> Any:
    return LutGemm.settings.parse(values, "lut-gemm")


@pytest.mark.parametrize("quantizer", ["gptq", "bcq", "rtn"])
def test_it_runs_every_linear_and_1x1_layer_by_look_ups(model, quantizer):
    chosen = settings(bits=3, group_size=16, quantizer=quantizer, batch_crossover=0)
    changed = SYSTEM.apply(model, chosen, context())
    x = torch.randn(3, 20, 6, 6, generator=torch.Generator().manual_seed(5))
    before = _cpu.lut_counts()["looked_up"]
    with torch.no_grad():
        y, exact = changed.run(x), changed.module()(x)
    assert _cpu.lut_counts()["looked_up"] - before == (48 + 80 + 16) / 16
    assert torch.linalg.norm(y - exact) <= 2e-2 * torch.linalg.norm(exact)
    for site in model.sites():
        weight = changed.weight(site.name)
        assert isinstance(weight, BitPlanes)
        form, size = SYSTEM.stored(site, chosen)
        assert (weight.form, weight.nbytes) == (form, size)
    assert {site.name for site in model.sites()} == {"mix", "hidden", "out"}


def test_quantizers_are_the_shared_ones(model):
    w = model.weight("hidden").dequantize()
    plain = SYSTEM.apply(model, settings(bits=4, quantizer="rtn", group_size=32), context()).weight("hidden")
    expected = rtn(w, 4, 32, grid="zero")
    assert np.array_equal(plain.codes(), expected.codes)
    assert np.array_equal(plain.dequantize(), expected.dequantize())
    only = settings(bits=2, quantizer="bcq", group_size=16, only="hidden", rounds=2)
    binary = SYSTEM.apply(model, only, context()).weight("hidden")
    assert not binary.uniform
    assert binary.scale.shape == (2, 70, 3)
    worse = bcq(w, 2, 16, rounds=0)
    assert np.linalg.norm(bcq(w, 2, 16, rounds=15).dequantize() - w) < np.linalg.norm(worse.dequantize() - w)


def test_patterns_choose_sites_and_the_rest_is_shared(model):
    changed = SYSTEM.apply(model, settings(only=("hidden", "mix"), skip="mix", quantizer="rtn"), context())
    assert isinstance(changed.weight("hidden"), BitPlanes)
    assert not isinstance(changed.weight("mix"), BitPlanes)
    assert np.array_equal(changed.weight("out").dequantize(), model.weight("out").dequantize())


def test_a_cached_weight_is_the_same_bit_for_bit(model, tmp_path):
    chosen = settings(bits=3, group_size=32, batch_crossover=16)
    first = SYSTEM.apply(model, chosen, context(cache=StepCache(tmp_path)))
    second = SYSTEM.apply(model, chosen, context(cache=StepCache(tmp_path)))
    for site in model.sites():
        a, b = first.weight(site.name), second.weight(site.name)
        assert a.meta() == b.meta()
        assert all(np.array_equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


def test_gptq_beats_rounding_on_the_inputs_it_was_calibrated_on(model):
    inputs = torch.cat([arguments[0] for arguments in context().calibration])
    with torch.no_grad():
        reference = model.module()(inputs)

        def loss(**values: Any) -> float:
            made = SYSTEM.apply(model, settings(bits=2, group_size=32, **values), context())
            exact = made.module()
            return float((exact(inputs) - reference).square().mean())

        assert loss(quantizer="gptq") < loss(quantizer="rtn")


def test_calibration_is_cut_to_what_the_settings_ask(model, monkeypatch):
    seen: list[int] = []

    def watch(self: Any, model: Any, settings: Any, context: Context, sites: Any) -> dict[str, Any]:
        seen.append(len(context.calibration))
        return {}

    monkeypatch.setattr("headway.llm.weights.transform.WeightTransform.weights", watch)
    SYSTEM.weights(model, settings(calib_tokens=5), context(), [])
    assert seen == [2]
    tokens = context()
    tokens.calibration = [(torch.zeros(2, 8, dtype=torch.int64),)] * 4
    SYSTEM.weights(model, settings(calib_tokens=32), tokens, [])
    assert seen == [2, 2]


def test_it_needs_calibration_unless_it_rounds(model):
    none = Context(target=None)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no calibration inputs"):
        SYSTEM.apply(model, settings(), none)
    assert SYSTEM.apply(model, settings(quantizer="rtn"), none).weight("out").bits == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bits": 5}, "bits=5"),
        ({"bits": 0}, "bits=0"),
        ({"group_size": 30}, "group_size=30"),
        ({"group_size": 2}, "group_size=2"),
        ({"quantizer": "awq"}, "quantizer='awq'"),
        ({"table_group": 16}, "table_group=16"),
        ({"mu": 8}, "mu=8"),
        ({"planes": 3}, "no setting 'planes'"),
    ],
)
def test_settings_out_of_bounds_are_refused(values, words):
    with pytest.raises(BadInput, match=words):
        settings(**values)


def test_every_setting_says_what_it_is_and_the_card_is_registered():
    assert entry("lut-gemm").load().card is LutGemm.card
    assert all(field.description for field in LutGemm.settings.model_fields.values())
    for option in SYSTEM.options(None, None):  # type: ignore[arg-type]
        assert settings(**option)


def test_the_measured_crossover_is_a_batch_size_or_never():
    assert measured_crossover(3, 64) in (0, 8, 16, 32, 64, 128)
    assert measured_crossover(3, 20) == 0
