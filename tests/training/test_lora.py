"""Adapter files as PEFT has them: written, read again, refused when they are another model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from random_stacks import random_stack, warm
from safetensors.torch import load_file, save_file

from headway.core.errors import BadInput
from headway.training.lora import CONFIG, WEIGHTS, Adapters, LoraSettings

STACK = random_stack(0, torch.float32)
SETTINGS = LoraSettings(4, 8.0, ("down_proj", "q_proj"))


def written(folder: Path) -> Adapters:
    adapters = warm(Adapters.fresh(STACK, SETTINGS))
    adapters.save(folder, "a-model")
    return adapters


def test_a_file_round_trips_bit_for_bit(tmp_path: Path) -> None:
    written(tmp_path / "adapter")
    adapters = written(tmp_path / "adapter")  # over the older one
    again = Adapters.load(tmp_path / "adapter", STACK)
    assert again.settings == LoraSettings(4, 8.0, ("down_proj", "q_proj"))
    assert again.pairs.keys() == adapters.pairs.keys()
    for site, pair in adapters.pairs.items():
        assert torch.equal(again.pairs[site].a, pair.a) and torch.equal(again.pairs[site].b, pair.b)


def test_names_and_shapes_are_peft_s(tmp_path: Path) -> None:
    written(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert tuple(tensors["base_model.model.model.layers.2.mlp.down_proj.lora_A.weight"].shape) == (4, 40)
    assert tuple(tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].shape) == (36, 4)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4 and config["lora_alpha"] == 8.0
    assert config["target_modules"] == ["down_proj", "q_proj"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("nothing_proj",), "targets are: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        (("lm_head",), "tied or frozen"),
        ((), "no target"),
    ],
)
def test_bad_targets(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Adapters.fresh(STACK, LoraSettings(4, 8.0, targets))


@pytest.mark.parametrize("rank", [0, 25])
def test_a_rank_the_matrix_cannot_have(rank: int) -> None:
    with pytest.raises(BadInput, match=r"it must be 1\.\.24"):
        Adapters.fresh(STACK, LoraSettings(rank, 8.0))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "is not LORA"),
        ("use_dora", True, "use_dora is set"),
        ("r", "many", "r='many'"),
        ("r", 5, r"it must be \(5, "),
        ("lora_alpha", None, "lora_alpha=None"),
    ],
)
def test_configurations_that_say_something_else(tmp_path: Path, key: str, value: object, message: str) -> None:
    written(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, key: value}))
    with pytest.raises(BadInput, match=message):
        Adapters.load(tmp_path, STACK)


def test_tensors_of_another_model(tmp_path: Path) -> None:
    written(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    one = next(iter(tensors))
    save_file({name: t for name, t in tensors.items() if name != one}, tmp_path / WEIGHTS)
    with pytest.raises(BadInput, match="is missing"):
        Adapters.load(tmp_path, STACK)
    stray = "base_model.model.model.layers.3.mlp.down_proj.lora_A.weight"
    save_file({**tensors, stray: tensors[one].clone()}, tmp_path / WEIGHTS)
    with pytest.raises(BadInput, match="belongs to no linear"):
        Adapters.load(tmp_path, STACK)
    (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(BadInput, match="save the adapter again"):
        Adapters.load(tmp_path, STACK)
