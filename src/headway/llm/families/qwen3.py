"""Qwen3 (dense): Llama with a norm on every head of q and k."""

from __future__ import annotations

from typing import Any

from headway.llm.families import metadata
from headway.llm.families.base import Architecture, Layer
from headway.llm.families.config import Config
from headway.llm.families.family import PRE_NORMS, Family
from headway.llm.families.llama import config_sizes
from headway.llm.families.qwen2 import DEFAULTS as QWEN2
from headway.llm.families.qwen2 import config_layers
from headway.llm.gguf.header import Header

DEFAULTS: dict[str, Any] = {**QWEN2, "head_dim": 128}
"""Of transformers' Qwen3Config."""


def from_config(config: Config) -> Architecture:
    config = config.over(DEFAULTS)
    config.refuse("hidden_act", "silu")
    config.refuse("attention_bias", False)
    return Architecture(
        family="qwen3",
        layers=config_layers(config),
        qk_norm=True,
        **config_sizes(config),
    )


def from_gguf(header: Header) -> Architecture:
    layers = (Layer(metadata.rope(header, "qwen3")),) * metadata.layer_count(header, "qwen3")
    return Architecture(family="qwen3", layers=layers, qk_norm=True, **metadata.sizes(header, "qwen3"))


FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    gguf_names=("qwen3",),
    from_config=from_config,
    from_gguf=from_gguf,
    checkpoint_norms=PRE_NORMS,
)
