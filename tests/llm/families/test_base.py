"""`Architecture`: names, bounds and its JSON form."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from headway.core.errors import BadInput
from headway.llm.families.base import Architecture, Layer, Rope
from headway.llm.families.config import Config
from headway.llm.families.table import FAMILIES, family_named, family_of_config
from headway.llm.reference import Reference

BASE = Architecture(
    family="llama",
    vocab=64,
    context=32,
    d_model=16,
    ffn=24,
    heads=4,
    kv_heads=2,
    head_dim=4,
    layers=(Layer(Rope()), Layer(Rope(1e6, "linear", 8.0), window=5)),
    norm_eps=1e-5,
    query_scale=0.5,
)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied": False}, {"qkv_bias": True}, {"qk_norm": True}, {"post_norms": True, "qk_norm": True, "tied": False}],
)
def test_the_torch_module_has_exactly_the_named_parameters(changes: dict[str, Any]) -> None:
    arch = replace(BASE, **changes)
    shapes = {name: tuple(value.shape) for name, value in Reference(arch).state_dict().items()}
    sites = {f"{site.name}.weight": (site.out_features, site.in_features) for site in arch.sites}
    assert shapes == sites | {name: (length,) for name, length in arch.vectors.items()}
    assert arch.parameters == sum(value.numel() for value in Reference(arch).parameters())


def test_a_tied_head_is_one_site_and_comes_last() -> None:
    assert [s.name for s in BASE.sites if s.kind != "linear"] == ["head"]
    assert [s.name for s in replace(BASE, tied=False).sites if s.kind != "linear"] == ["embedding", "head"]
    assert BASE.sites[-1].name == "head"


def test_json_gives_an_equal_object_back() -> None:
    rope = Rope(1e4, "factors", factors=(1.0, 2.5))
    arch = replace(BASE, layers=(Layer(rope), Layer(Rope(), 7)), eos=(1, 2), bos=3)
    assert Architecture.from_json(json.loads(json.dumps(arch.to_json()))) == arch


@pytest.mark.parametrize("broken", [{}, {"layers": 3}, {**BASE.to_json(), "new": 1}, {**BASE.to_json(), "eos": None}])
def test_broken_json_is_bad_input(broken: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Architecture.from_json(broken)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab": 0},
        {"vocab": 1 << 40},
        {"heads": 3},
        {"kv_heads": 0},
        {"head_dim": 5},
        {"layers": ()},
        {"layers": (Layer(Rope(base=1.0)),)},
        {"layers": (Layer(Rope(base=float("nan"))),)},
        {"layers": (Layer(Rope(), window=-1),)},
        {"layers": (Layer(Rope(1e4, "factors", factors=(1.0,))),)},
        {"layers": (Layer(Rope(1e4, "factors", factors=(0.0, 1.0))),)},
        {"layers": (Layer(Rope(1e4, "llama3", 8.0)),)},
        {"layers": (Layer(Rope(1e4, "llama3", 8.0, low_freq_factor=4.0, original_context=8)),)},
        {"layers": (Layer(Rope(1e4, "yarn", 8.0, original_context=8, beta_fast=0.0)),)},
        {"norm_eps": 0.0},
        {"query_scale": float("inf")},
        {"final_softcap": -1.0},
        {"eos": (64,)},
        {"bos": -1},
    ],
)
def test_every_field_is_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        replace(BASE, **wrong)


def test_an_unknown_architecture_names_the_supported_ones() -> None:
    with pytest.raises(BadInput, match=r"'mamba' is unknown; supported: llama, mistral, qwen2, qwen3, gemma3_text"):
        family_of_config(Config({"model_type": "mamba"}))
    with pytest.raises(BadInput, match="no model family 'x'"):
        family_named("x")


SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
WRONG: list[dict[str, Any]] = [
    {key: value}
    for key in SIZES
    for value in (None, -1, 0, 1 << 31, 1 << 70, 2.5, "8", True, [8], {}, float("nan"))
    if not (key == "num_key_value_heads" and value is None)  # one for each head
] + [
    {"rms_norm_eps": "1e-5"},
    {"rms_norm_eps": 0},
    {"rope_theta": -1.0},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear"}},
    {"rope_scaling": {"rope_type": "linear", "factor": 0.0}},
    {"rope_scaling": []},
    {"rope_parameters": {"full_attention": 3, "x": {}}},
    {"partial_rotary_factor": 0.5},
    {"layer_types": ["full_attention"], "model_type": "qwen3"},
    {"layer_types": ["full_attention", "chunked_attention"], "model_type": "qwen3"},
    {"layer_types": "full", "model_type": "gemma3_text"},
    {"hidden_act": "relu"},
    {"attention_bias": True},
    {"eos_token_id": [1, "2"]},
    {"eos_token_id": 64},
    {"head_dim": 1 << 30},
    {"model_type": ["llama"]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=[repr(wrong)[:60] for wrong in WRONG])
def test_no_value_of_a_configuration_gets_past_its_bounds(wrong: dict[str, Any]) -> None:
    config = Config({"model_type": "llama", **SIZES, **wrong})
    with pytest.raises(BadInput) as error:
        family_of_config(config).from_config(config)
    assert "\n" not in str(error.value)


def test_every_family_reads_its_smallest_configuration() -> None:
    for family in FAMILIES:
        values = {"model_type": family.model_types[0], **SIZES, "head_dim": 8, "sliding_window": 4}
        arch = family.from_config(Config(values))
        names = family.checkpoint_names(arch)
        assert arch.family == family.name
        assert set(names) == {f"{s.name}.weight" for s in arch.sites} | set(arch.vectors)
        assert len(set(names.values())) == len(names)
