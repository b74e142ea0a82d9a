"""The system `bipolar-int`: what it takes, what it makes of linear and convolution layers, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from known_machine import UNMEASURED
from small_net import Net, context, small_model
from tiny_models import TinyFolder

import headway
from headway.core.artifact import write_artifact
from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.module_files import load_module
from headway.core.module_model import ModuleModel
from headway.core.recipe import Recipe
from headway.core.registry import entry
from headway.core.system import Context
from headway.kernels.cpu import _cpu
from headway.llm.load import load
from headway.llm.weights.bipolar import BipolarWeight
from headway.llm.weights.bipolar_int import BipolarInt
from headway.llm.weights.bitplanes import BitPlanes
from headway.optimize.applying import apply_recipe

SYSTEM = BipolarInt()


@pytest.fixture(scope="module")
def model() -> ModuleModel:
    return small_model()


def settings(**values: Any) -> Any:
    return BipolarInt.settings.parse(values, "bipolar-int")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"quantizer": "rtn", "clip": "max", "rotate": 0, "act_group": 0},
        {"convert": "from_signed", "weight_bits": 3},
        {"convert": "from_signed", "quantizer": "rtn", "group_size": 0},
        {"weight_bits": 8, "group_size": 32},
    ],
)
def test_it_runs_every_linear_and_1x1_layer_in_integers(model, values):
    chosen = settings(**values)
    changed = SYSTEM.apply(model, chosen, context())
    x = torch.randn(3, 20, 6, 6, generator=torch.Generator().manual_seed(5))
    for site in model.sites():
        changed.weight(site.name).native()  # packing tries both ways
    before = sum(_cpu.bipolar_counts().values())
    with torch.no_grad():
        y, exact = changed.run(x), changed.module()(x)
    assert sum(_cpu.bipolar_counts().values()) - before == (48 + 80 + 16) / 16
    assert torch.linalg.norm(y - exact) <= 2e-2 * torch.linalg.norm(exact)
    for site in model.sites():
        weight = changed.weight(site.name)
        assert isinstance(weight, BipolarWeight)
        assert SYSTEM.stored(site, chosen) == (weight.form, weight.nbytes)
    assert {site.name for site in model.sites()} == {"mix", "hidden", "out"}


def test_float_activations_take_the_look_ups_with_the_same_levels(model):
    for group in (32, 0):
        chosen = settings(act_bits=16, weight_bits=3, group_size=group, quantizer="rtn")
        found = SYSTEM.apply(model, chosen, context()).weight("hidden")
        plain = settings(weight_bits=3, group_size=group, quantizer="rtn", rotate=0)
        same = SYSTEM.apply(model, plain, context()).weight("hidden")
        assert isinstance(found, BitPlanes)
        assert np.allclose(found.dequantize(), same.dequantize(), rtol=0, atol=1e-6)
        assert SYSTEM.stored(next(s for s in model.sites() if s.name == "hidden"), chosen) == (
            "bitplanes",
            found.nbytes,
        )


def test_bits_can_be_set_for_each_layer(model):
    chosen = settings(weight_bits=4, per_layer_bits={"hid*": 2, "out": 6}, group_size=32)
    changed = SYSTEM.apply(model, chosen, context())
    assert {site.name: changed.weight(site.name).bits for site in model.sites()} == {"mix": 4, "hidden": 2, "out": 6}
    assert all(SYSTEM.stored(s, chosen)[1] == changed.weight(s.name).nbytes for s in model.sites())


def test_a_cached_weight_is_the_same_bit_for_bit(model, tmp_path):
    chosen = settings(weight_bits=3, per_layer_bits={"out": 5})
    first, second = (SYSTEM.apply(model, chosen, context(cache=StepCache(tmp_path))) for _ in range(2))
    for site in model.sites():
        a, b = first.weight(site.name), second.weight(site.name)
        assert a.meta() == b.meta()
        assert all(np.array_equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


def test_gptq_beats_rounding_on_the_inputs_it_was_calibrated_on(model):
    inputs = torch.cat([arguments[0] for arguments in context().calibration])
    with torch.no_grad():
        reference = model.module()(inputs)

        def loss(**values: Any) -> float:
            exact = SYSTEM.apply(model, settings(weight_bits=2, group_size=32, **values), context()).module()
            return float((exact(inputs) - reference).square().mean())

        assert loss(quantizer="gptq") < loss(quantizer="rtn")


def test_a_recipe_mixes_it_with_other_weight_systems_and_an_artifact_brings_it_back(tiny: TinyFolder, tmp_path):
    model = load(tiny.path)
    ours = 'bipolar-int(weight_bits=8, quantizer="rtn", only="*.mlp.*")'
    text = ours + ' + lut-gemm(bits=4, quantizer="rtn", skip="*.mlp.*")'
    mixed = apply_recipe(Recipe.parse(text), model, Context(target=UNMEASURED, threads=1)).with_runtime("native")
    forms = {site.name: mixed.weight(site.name).form for site in mixed.sites() if site.kind == "linear"}
    assert all(form == ("bipolar" if ".mlp." in name else "bitplanes") for name, form in forms.items())
    tokens = [1, 2, 3, 4, 5]
    exact = model.with_runtime("exact").logits(tokens)
    mixed_logits = mixed.logits(tokens)
    assert np.linalg.norm(mixed_logits - exact) <= 0.3 * np.linalg.norm(exact)
    evidence = Evidence.begin("prove", "bipolar-int", UNMEASURED, 0, 1)
    write_artifact(tmp_path / "mixed", mixed, Recipe.parse(text).to_toml(), evidence)
    again = headway.load(str(tmp_path / "mixed"))
    assert {site.name: again.weight(site.name).form for site in again.sites() if site.kind == "linear"} == forms
    assert np.array_equal(again.logits(tokens), mixed_logits)


def test_eight_bits_of_both_decode_close_to_the_exact_model_and_run_the_kernels(tiny: TinyFolder):
    model = load(tiny.path)
    recipe = Recipe.parse('bipolar-int(weight_bits=8, quantizer="rtn")')
    close = apply_recipe(recipe, model, Context(target=UNMEASURED, threads=1)).with_runtime("native")
    tokens = [1, 2, 3, 4, 5]
    exact = model.with_runtime("exact").logits(tokens)
    assert np.linalg.norm(close.logits(tokens) - exact) <= 5e-2 * np.linalg.norm(exact)
    before = sum(_cpu.bipolar_counts().values())
    assert np.array_equal(close.with_runtime("native", 1).logits(tokens), close.logits(tokens))
    tiles = sum(-(-site.out_features // 16) for site in close.sites() if site.kind == "linear")
    assert sum(_cpu.bipolar_counts().values()) - before == 2 * tiles


def test_a_saved_module_brings_the_same_weights_back(model, tmp_path):
    changed = SYSTEM.apply(model, settings(quantizer="rtn"), Context(target=UNMEASURED))
    changed.save(tmp_path)
    again = load_module(tmp_path, module=Net())
    x = torch.randn(3, 20, 6, 6)
    with torch.no_grad():
        assert torch.equal(again.run(x), changed.run(x))
    assert all(again.weight(site.name).form == "bipolar" for site in model.sites())


def test_it_needs_calibration_unless_it_rounds(model):
    none = Context(target=None)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no calibration inputs"):
        SYSTEM.apply(model, settings(), none)
    assert SYSTEM.apply(model, settings(quantizer="rtn"), none).weight("out").bits == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"weight_bits": 9}, "weight_bits=9"),
        ({"weight_bits": 0}, "weight_bits=0"),
        ({"act_bits": 0}, "act_bits=0"),
        ({"act_bits": 9}, "1 to 8, or 16"),
        ({"act_bits": 16, "weight_bits": 5}, "1 to 4 bits, not 5"),
        ({"group_size": 48}, "group_size=48"),
        ({"act_group": 16}, "act_group=16"),
        ({"rotate": 48}, "rotate=48"),
        ({"quantizer": "bcq"}, "quantizer='bcq'"),
        ({"clip": "none"}, "clip='none'"),
        ({"convert": "signed"}, "convert='signed'"),
        ({"per_layer_bits": {"out": 9}}, "'out' has 9 bits"),
        ({"planes": 3}, "no setting 'planes'"),
    ],
)
def test_settings_out_of_bounds_are_refused(values, words):
    with pytest.raises(BadInput, match=words):
        settings(**values)


def test_every_setting_says_what_it_is_and_the_card_is_registered():
    assert entry("bipolar-int").load().card is BipolarInt.card
    assert entry("bipolar-int").proof_module == "headway.llm.weights.bipolar_int_proof"
    assert all(field.description for field in BipolarInt.settings.model_fields.values())
    for option in SYSTEM.options(None, None):  # type: ignore[arg-type]
        assert settings(**option)
