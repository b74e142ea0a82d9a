"""Every family's reference network gives the logits of transformers' own implementation with the same weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import VOCAB, tiny_tokenizer, write_gguf
from transformers import AutoModelForCausalLM

from headway.core.module_model import ModuleModel
from headway.llm.families.config import Config
from headway.llm.families.table import family_named, family_of_config
from headway.llm.gguf.model import load_gguf
from headway.llm.hugging_face import load_folder
from headway.llm.language_model import LanguageModel

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama tied, odd heads, llama3 rope": (
        "LlamaConfig",
        {"head_dim": 10, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
    "llama yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama linear rope": ("LlamaConfig", {"rope_parameters": LINEAR}),
    "mistral with a window": ("MistralConfig", {"sliding_window": 7}),
    "mistral without": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2 with a window from layer 1": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 5, "layer_types": MIXED, "query_pre_attn_scalar": 20},
    ),
    "gemma3 capped, two ropes": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 9,
            "layer_types": MIXED,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}


def random_model(name: str, settings: dict[str, Any], seed: int = 0) -> Any:
    config = getattr(transformers, name)(**{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.25)
    return model


def folder_of(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    return path


def error(model: Any, ours: LanguageModel, length: int = 40) -> float:
    """Largest difference of logits over the largest logit."""
    tokens = torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(tokens).logits[0].float().numpy()
        mine = ours.module()(tokens)[0].numpy()
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("case", CASES)
def test_a_saved_folder_gives_their_logits(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    assert error(model, load_folder(folder_of(model, tmp_path / "m"))) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_native_network_is_the_reference_of_the_same_description(case: str, tmp_path: Path) -> None:
    ours = load_folder(folder_of(random_model(*CASES[case]), tmp_path / "m"))
    tokens = np.random.default_rng(2).integers(0, VOCAB, 60)
    reference = ours.with_runtime("torch").logits(tokens)
    exact = ours.with_runtime("exact").logits(tokens)
    assert np.abs(exact - reference).max() / np.abs(reference).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model("Qwen3Config", {"head_dim": 16}).to(dtype)
    ours = load_folder(folder_of(model, tmp_path / "m"))
    assert ours.weight("layers.1.mlp.up").nbytes == 2 * 80 * 48
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32, attn_implementation="eager")
    assert error(theirs, ours) < 1e-5


def test_sharded_checkpoints_are_read(tmp_path: Path) -> None:
    model = random_model("LlamaConfig", {})
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    tiny_tokenizer().save(str(tmp_path / "m" / "tokenizer.json"))
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    assert error(model, load_folder(tmp_path / "m")) < 1e-5


def test_the_language_model_inside_a_vision_checkpoint_is_read(tmp_path: Path) -> None:
    """Gemma 3's larger checkpoints keep it beside a vision tower, under another prefix."""
    from safetensors.torch import load_file, save_file

    model = random_model("Gemma3TextConfig", {"head_dim": 16, "layer_types": MIXED, "sliding_window": 5})
    folder = folder_of(model, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    tensors = load_file(folder / "model.safetensors")
    for prefix in ("model.language_model.", "language_model.model."):
        moved = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
        save_file({**moved, "vision_tower.x": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
        assert error(model, load_folder(folder)) < 1e-5


def old_style(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as the library wrote it before version 5."""
    ropes = config.pop("rope_parameters")
    if "full_attention" in ropes:
        config["rope_theta"] = ropes["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        config["rope_scaling"] = {k: v for k, v in ropes["full_attention"].items() if k != "rope_theta"}
    else:
        config["rope_theta"] = ropes.pop("rope_theta")
        config["rope_scaling"] = {**ropes, "type": ropes.pop("rope_type")}
    return config


@pytest.mark.parametrize("case", ["llama yarn", "llama linear rope", "gemma3 capped, two ropes"])
def test_configurations_of_before_version_5_mean_the_same(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    folder = folder_of(model, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(old_style(config)))
    assert error(model, load_folder(folder)) < 1e-5


SHAPED: dict[str, Any] = {
    **SIZES,
    "hidden_size": 128,
    "num_attention_heads": 64,
    "head_dim": 6,
    "bos_token_id": 3,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
PER_TYPE = {f"{kind}_attention": {"rope_type": "default", "rope_theta": 3e4} for kind in ("full", "sliding")}
GEMMA3 = {"rope_parameters": PER_TYPE, "sliding_window": 5, "query_pre_attn_scalar": 20, "final_logit_softcapping": 3.0}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LlamaConfig", SHAPED),
        ("MistralConfig", {**SHAPED, "sliding_window": 5}),
        ("Qwen2Config", {**SHAPED, **WINDOWS}),
        ("Qwen3Config", {**SHAPED, **WINDOWS}),
        ("Gemma3TextConfig", {**SHAPED, **GEMMA3}),
    ],
)
def test_a_key_that_is_left_out_means_what_it_means_to_transformers(name: str, settings: dict[str, Any]) -> None:
    kind = getattr(transformers, name)
    for left_out in (None, *settings):
        given = {key: value for key, value in settings.items() if key != left_out}
        whole = kind(**given).to_dict()
        family = family_of_config(Config(whole))
        read = family.from_config(Config({"model_type": kind.model_type, **given}))
        assert read == family.from_config(Config(whole)), left_out
    assert family.from_config(Config({"model_type": kind.model_type})) == family.from_config(Config(kind().to_dict()))


def test_the_published_gemma3_with_a_vision_tower_leaves_its_heads_to_the_defaults() -> None:
    said = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    scaling = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    config = Config({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **said, **scaling}})
    arch = family_of_config(config).from_config(config)
    assert (arch.heads, arch.kv_heads, arch.head_dim, arch.vocab, arch.tied) == (8, 4, 256, 262208, True)


def test_a_configuration_without_layer_types_counts_its_sliding_layers_from_the_first(tmp_path: Path) -> None:
    model = random_model(*CASES["qwen2 with a window from layer 1"])
    folder = folder_of(model, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("layer_types") == ["full_attention", "sliding_attention", "sliding_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    assert error(model, load_folder(folder)) < 1e-5


YARN_KEYS = {
    "rope.freq_base": 1e4,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}

GGUF_CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}, "llama", {"rope.freq_base": 1e4}),
    "llama untied": ("LlamaConfig", {}, "llama", {}),
    "llama yarn": ("LlamaConfig", {"rope_parameters": YARN}, "llama", YARN_KEYS),
    "llama yarn, attention factor": (
        "LlamaConfig",
        {"rope_parameters": {**YARN, "attention_factor": 1.3 * (0.1 * math.log(4.0) + 1.0)}},
        "llama",
        {**YARN_KEYS, "rope.scaling.attn_factor": 1.3},
    ),
    "qwen2": ("Qwen2Config", {}, "qwen2", {"rope.freq_base": 1e4}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}, "qwen3", {"rope.freq_base": 1e4}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "num_hidden_layers": 7, "sliding_window": 5, "query_pre_attn_scalar": 16},
        "gemma3",
        {"rope.freq_base": 1e6, "attention.sliding_window": 5},
    ),
    "gemma3 as deep as the 27B": (
        "Gemma3TextConfig",
        {"head_dim": 16, "num_hidden_layers": 62, "sliding_window": 5, "query_pre_attn_scalar": 8},
        "gemma3",
        {"rope.freq_base": 1e6, "attention.sliding_window": 5},
    ),
}


@pytest.mark.parametrize("case", GGUF_CASES)
def test_a_gguf_file_gives_the_logits_of_the_checkpoint_it_was_made_of(case: str, tmp_path: Path) -> None:
    name, settings, architecture, extra = GGUF_CASES[case]
    model = random_model(name, settings)
    config = {**SIZES, **settings}
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    if config.get("tie_word_embeddings", architecture == "gemma3"):
        tensors.pop("lm_head.weight", None)
    write_gguf(tmp_path / "m.gguf", architecture, config, tensors, extra=extra)
    assert error(model, load_gguf(tmp_path / "m.gguf")) < 1e-5


def test_llama_rope_factors_of_a_gguf_file_are_those_of_the_configuration(tmp_path: Path) -> None:
    """Converters write Llama 3.1's scaling as a tensor of factors."""
    model = random_model("LlamaConfig", {"rope_parameters": LLAMA3})
    plain = 5e5 ** (-np.arange(0, 8, 2) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    import tiny_models

    original = tiny_models.gguf_name
    tiny_models.gguf_name = lambda name, sandwich: name if name == "rope_freqs.weight" else original(name, sandwich)
    try:
        write_gguf(
            tmp_path / "m.gguf",
            "llama",
            SIZES,
            {**tensors, "rope_freqs.weight": factors},
            extra={"rope.freq_base": 5e5},
        )
    finally:
        tiny_models.gguf_name = original
    ours = load_gguf(tmp_path / "m.gguf")
    assert ours.architecture.layers[0].rope.scaling == "factors"
    assert error(model, ours) < 1e-5


def test_the_fingerprint_of_a_generative_network_leaves_the_salted_hash_of_its_settings_out() -> None:
    prints = []
    for salted, sampled in ((1, False), (2, False), (1, True)):
        model = random_model("LlamaConfig", {})
        assert hasattr(model.generation_config, "_original_object_hash")
        model.generation_config._original_object_hash = salted
        model.generation_config.do_sample = sampled
        prints.append(ModuleModel(model, torch.zeros(1, 2, dtype=torch.long)).fingerprint())
    assert prints[0] == prints[1] != prints[2]
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1.0
    assert ModuleModel(model, torch.zeros(1, 2, dtype=torch.long)).fingerprint() != prints[2]


def test_smollm2_gives_the_logits_of_transformers(smollm2: LanguageModel) -> None:
    """The packaged model's exact weights in their network, through the names of their checkpoint."""
    arch = smollm2.architecture
    config = transformers.LlamaConfig(
        vocab_size=arch.vocab,
        hidden_size=arch.d_model,
        intermediate_size=arch.ffn,
        num_hidden_layers=len(arch.layers),
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        rms_norm_eps=arch.norm_eps,
        max_position_embeddings=arch.context,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": arch.layers[0].rope.base},
    )
    ours = smollm2.module()
    state = ours.state_dict()
    names = family_named("llama").checkpoint_names(arch)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    theirs.load_state_dict({theirs_: state[ours_] for ours_, theirs_ in names.items()}, strict=False, assign=True)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    tokens = torch.tensor([smollm2.encode("The capital of France is Paris, and the capital of Italy is")])
    with torch.no_grad():
        a, b = theirs.eval()(tokens).logits, ours(tokens)
    assert ((a - b).abs().max() / a.abs().max()).item() < 1e-5
