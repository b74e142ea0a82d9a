"""Llama 1 to 3 and everything built like them (SmolLM, SmolLM2, TinyLlama ...)."""

from __future__ import annotations

from typing import Any

from headway.llm.families import metadata
from headway.llm.families.base import Architecture, Layer
from headway.llm.families.config import Config
from headway.llm.families.family import PRE_NORMS, Family
from headway.llm.gguf.header import Header

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What transformers' LlamaConfig takes for a key that is absent, where it is not computed from others."""


def config_sizes(config: Config) -> dict[str, Any]:
    """The fields of `Architecture` that the Llama-like families store under the same keys."""
    d_model = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", d_model // max(heads, 1))
    return {
        "vocab": config.integer("vocab_size"),
        "context": config.integer("max_position_embeddings"),
        "d_model": d_model,
        "ffn": config.integer("intermediate_size"),
        "heads": heads,
        "kv_heads": config.integer("num_key_value_heads", heads),
        "head_dim": head_dim,
        "norm_eps": config.real("rms_norm_eps", 1e-6),
        "query_scale": max(head_dim, 1) ** -0.5,
        "tied": config.flag("tie_word_embeddings"),
        "bos": config.bos(),
        "eos": config.ids("eos_token_id"),
    }


def from_config(config: Config) -> Architecture:
    config = config.over(DEFAULTS)
    config.refuse("hidden_act", "silu")
    config.refuse("attention_bias", False)
    config.refuse("mlp_bias", False)
    layers = (Layer(config.rope()),) * config.layer_count()
    return Architecture(family="llama", layers=layers, **config_sizes(config))


def from_gguf(header: Header) -> Architecture:
    """Mistral files say `llama` too, and then keep their window under the same key."""
    window = header.integer("llama.attention.sliding_window", 0)
    layers = (Layer(metadata.rope(header, "llama"), window),) * metadata.layer_count(header, "llama")
    return Architecture(family="llama", layers=layers, **metadata.sizes(header, "llama"))


FAMILY = Family(
    name="llama",
    model_types=("llama",),
    gguf_names=("llama",),
    from_config=from_config,
    from_gguf=from_gguf,
    checkpoint_norms=PRE_NORMS,
    rotated_in_pairs=True,
)
