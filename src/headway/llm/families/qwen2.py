"""Qwen2 and Qwen2.5: Llama with biases on q, k and v."""

from __future__ import annotations

from typing import Any

from headway.llm.families import metadata
from headway.llm.families.base import Architecture, Layer
from headway.llm.families.config import Config
from headway.llm.families.family import PRE_NORMS, Family
from headway.llm.families.llama import DEFAULTS as LLAMA
from headway.llm.families.llama import config_sizes
from headway.llm.gguf.header import Header

DEFAULTS: dict[str, Any] = {
    **LLAMA,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""Of transformers' Qwen2Config."""


def config_layers(config: Config) -> tuple[Layer, ...]:
    """The layers from `max_window_layers` on slide where `use_sliding_window` says so; `layer_types` overrides."""
    window = config.integer("sliding_window") if config.flag("use_sliding_window") else 0
    if "layer_types" in config:
        types = config.texts("layer_types")
    else:
        first = config.integer("max_window_layers") if window else config.layer_count()
        types = tuple(
            "sliding_attention" if index >= first else "full_attention" for index in range(config.layer_count())
        )
    rope = config.rope()
    return config.layers(types, {"full_attention": rope, "sliding_attention": rope}, window)


def from_config(config: Config) -> Architecture:
    config = config.over(DEFAULTS)
    config.refuse("hidden_act", "silu")
    return Architecture(family="qwen2", layers=config_layers(config), qkv_bias=True, **config_sizes(config))


def from_gguf(header: Header) -> Architecture:
    layers = (Layer(metadata.rope(header, "qwen2")),) * metadata.layer_count(header, "qwen2")
    return Architecture(family="qwen2", layers=layers, qkv_bias=True, **metadata.sizes(header, "qwen2"))


FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    gguf_names=("qwen2",),
    from_config=from_config,
    from_gguf=from_gguf,
    checkpoint_norms=PRE_NORMS,
)
