"""Gemma 3 (its language model): norms on both sides, sliding layers with a rotary base of their own."""

from __future__ import annotations

from typing import Any

from headway.llm.families import metadata
from headway.llm.families.base import Architecture, Layer, Rope
from headway.llm.families.config import Config
from headway.llm.families.family import SANDWICH_NORMS, Family
from headway.llm.gguf.header import Header

PATTERN = 6
"""One layer in six sees everything, the others a window."""

LOCAL_BASE, GLOBAL_BASE = 1e4, 1e6
LAYERS_OF_27B = 62

DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "sliding_window_pattern": PATTERN,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
"""What transformers' Gemma3TextConfig takes for a key that is absent; the published checkpoints leave many out."""


def from_config(config: Config) -> Architecture:
    if config.text("model_type", "") == "gemma3":  # with a vision tower: its language model alone
        config = config.part("text_config")
    config = config.over(DEFAULTS)
    config.refuse("hidden_activation", "gelu_pytorch_tanh")
    config.refuse("attention_bias", False)
    config.refuse("use_bidirectional_attention", False)
    d_model = config.integer("hidden_size")
    if "layer_types" in config:
        types = config.texts("layer_types")
    else:
        pattern = max(config.integer("sliding_window_pattern"), 1)
        types = tuple(
            "sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(config.layer_count())
        )
    ropes = {"full_attention": config.rope(default_base=GLOBAL_BASE), "sliding_attention": _local_rope(config)}
    return Architecture(
        family="gemma3",
        vocab=config.integer("vocab_size"),
        context=config.integer("max_position_embeddings"),
        d_model=d_model,
        ffn=config.integer("intermediate_size"),
        heads=config.integer("num_attention_heads"),
        kv_heads=config.integer("num_key_value_heads"),
        head_dim=config.integer("head_dim"),
        layers=config.layers(types, ropes, config.integer("sliding_window")),
        norm_eps=config.real("rms_norm_eps", 1e-6),
        query_scale=max(config.real("query_pre_attn_scalar"), 1e-6) ** -0.5,
        activation="gelu_tanh",
        embedding_scale=d_model**0.5,
        qk_norm=True,
        post_norms=True,
        attention_softcap=config.real("attn_logit_softcapping", 0.0),
        final_softcap=config.real("final_logit_softcapping", 0.0),
        tied=config.flag("tie_word_embeddings"),
        bos=config.bos(),
        eos=config.ids("eos_token_id"),
    )


def _local_rope(config: Config) -> Rope:
    """The sliding layers' own base; the scaling of older configurations is the global layers' alone."""
    if "rope_parameters" in config:
        return config.rope("sliding_attention", LOCAL_BASE)
    return Rope(config.real("rope_local_base_freq", LOCAL_BASE))


def from_gguf(header: Header) -> Architecture:
    key = "gemma3"
    count = metadata.layer_count(header, key)
    window = header.integer(f"{key}.attention.sliding_window", 0)
    full = Layer(metadata.rope(header, key, GLOBAL_BASE))
    local = Layer(Rope(header.real(f"{key}.rope.freq_base_swa", LOCAL_BASE)), window)
    layers = tuple(local if window and (index + 1) % PATTERN else full for index in range(count))
    sizes = metadata.sizes(header, key)
    if count == LAYERS_OF_27B:  # the one size whose scale is not that of its heads
        sizes["query_scale"] = (sizes["d_model"] / sizes["heads"]) ** -0.5
    return Architecture(
        family="gemma3",
        layers=layers,
        activation="gelu_tanh",
        embedding_scale=sizes["d_model"] ** 0.5,
        qk_norm=True,
        post_norms=True,
        attention_softcap=header.real(f"{key}.attn_logit_softcapping", 0.0),
        final_softcap=header.real(f"{key}.final_logit_softcapping", 0.0),
        **sizes,
    )


FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    gguf_names=("gemma3",),
    from_config=from_config,
    from_gguf=from_gguf,
    checkpoint_norms=SANDWICH_NORMS,
    norm_offset=1.0,
)
