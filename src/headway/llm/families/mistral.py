"""Mistral: Llama with a sliding window on every layer (version 0.1; none later)."""

from __future__ import annotations

from headway.llm.families.base import Architecture
from headway.llm.families.config import Config
from headway.llm.families.family import PRE_NORMS, Family
from headway.llm.families.llama import config_sizes, from_gguf


def from_config(config: Config) -> Architecture:
    config.refuse("hidden_act", "silu")
    count = config.layer_count()
    window = 4096 if "sliding_window" not in config.values else config.integer("sliding_window", 0)
    kind = "sliding_attention" if window else "full_attention"
    layers = config.layers((kind,) * count, {kind: config.rope()}, window)
    return Architecture(family="mistral", layers=layers, **config_sizes(config, context=4096 * 32))


FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    gguf_names=(),  # its files call themselves llama
    from_config=from_config,
    from_gguf=from_gguf,
    checkpoint_norms=PRE_NORMS,
    rotated_in_pairs=True,
)
