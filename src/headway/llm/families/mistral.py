"""Mistral: Llama with a sliding window on every layer (version 0.1; none later)."""

from __future__ import annotations

from typing import Any

from headway.llm.families.base import Architecture
from headway.llm.families.config import Config
from headway.llm.families.family import PRE_NORMS, Family
from headway.llm.families.llama import DEFAULTS as LLAMA
from headway.llm.families.llama import config_sizes, from_gguf

DEFAULTS: dict[str, Any] = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
"""Of transformers' MistralConfig."""


def from_config(config: Config) -> Architecture:
    config = config.over(DEFAULTS)
    config.refuse("hidden_act", "silu")
    count = config.layer_count()
    window = config.integer("sliding_window", 0)  # null: none
    kind = "sliding_attention" if window else "full_attention"
    layers = config.layers((kind,) * count, {kind: config.rope()}, window)
    return Architecture(family="mistral", layers=layers, **config_sizes(config))


FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    gguf_names=(),  # its files call themselves llama
    from_config=from_config,
    from_gguf=from_gguf,
    checkpoint_norms=PRE_NORMS,
    rotated_in_pairs=True,
)
