"""What the families share when they read a GGUF header."""

from __future__ import annotations

from typing import Any

from headway.llm.families.base import MAX_LAYERS, Rope
from headway.llm.families.config import yarn_attention_factor
from headway.llm.gguf.header import Header


def layer_count(header: Header, prefix: str) -> int:
    key = f"{prefix}.block_count"
    count = header.integer(key)
    if not 1 <= count <= MAX_LAYERS:
        raise header.fault(key, f"is {count}, not in 1..{MAX_LAYERS}")
    return count


def sizes(header: Header, prefix: str) -> dict[str, Any]:
    """The fields of `Architecture` that every family stores under the same keys."""
    d_model = header.integer(f"{prefix}.embedding_length")
    heads = _same_for_all(header, f"{prefix}.attention.head_count")
    if not 1 <= heads <= d_model:
        raise header.fault(f"{prefix}.attention.head_count", f"is {heads} for {d_model} dimensions")
    head_dim = header.integer(f"{prefix}.attention.key_length", d_model // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if header.integer(f"{prefix}.{key}", head_dim) != head_dim:
            raise header.fault(f"{prefix}.{key}", f"differs from the head dimension {head_dim}: not supported")
    if header.integer(f"{prefix}.expert_count", 0):
        raise header.fault(f"{prefix}.expert_count", "is not 0: mixtures of experts are not supported")
    embedding = header.tensors.get("token_embd.weight")
    vocab = embedding.shape[0] if embedding is not None else header.integer(f"{prefix}.vocab_size")
    return {
        "vocab": vocab,
        "context": header.integer(f"{prefix}.context_length"),
        "d_model": d_model,
        "ffn": _same_for_all(header, f"{prefix}.feed_forward_length"),
        "heads": heads,
        "kv_heads": _same_for_all(header, f"{prefix}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "norm_eps": header.real(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "query_scale": max(head_dim, 1) ** -0.5,
        "tied": "output.weight" not in header.tensors,
        "bos": special(header, "bos"),
        "eos": end_tokens(header),
    }


def _same_for_all(header: Header, key: str, default: int | None = None) -> int:
    """A number that may be given as one for each layer, all alike."""
    if key in header and header[key].count >= 0:
        values = header.numbers(key)
        if values.size == 0 or values.dtype.kind not in "ui" or not (values == values[0]).all():
            raise header.fault(key, "differs from layer to layer: not supported")
        return int(values[0])
    return header.integer(key, default)


def rope(header: Header, prefix: str, default_base: float = 10000.0) -> Rope:
    """The rotary embedding; the tensor `rope_freqs.weight`, where there is one, holds its factors."""
    base = header.real(f"{prefix}.rope.freq_base", default_base)
    kind = header.text(f"{prefix}.rope.scaling.type", "none")
    factor = header.real(f"{prefix}.rope.scaling.factor", 1.0)
    if kind == "none" or factor <= 0.0:
        return Rope(base)
    if kind == "linear":
        return Rope(base, "linear", factor)
    if kind != "yarn":
        raise header.fault(f"{prefix}.rope.scaling.type", f"is {kind!r}: supported are none, linear, yarn")
    scale = header.real(f"{prefix}.rope.scaling.attn_factor", 1.0)
    return Rope(
        base,
        "yarn",
        factor,
        original_context=header.integer(f"{prefix}.rope.scaling.original_context_length"),
        beta_fast=header.real(f"{prefix}.rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=header.real(f"{prefix}.rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=scale * yarn_attention_factor(factor),
    )


def special(header: Header, name: str) -> int | None:
    """The id of a special token: `bos`, `eos`, `eot`, `unknown`, `padding`."""
    key = f"tokenizer.ggml.{name}_token_id"
    return header.integer(key) if key in header else None


END_NAMES = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end|>",
    "</s>",
    "<eos>",
)
"""Control tokens that end a turn wherever a vocabulary has them; converters often record only one of them."""

CONTROL = 3
"""`tokenizer.ggml.token_type` of a control token."""


def end_tokens(header: Header) -> tuple[int, ...]:
    """Every token that ends a text or a turn, the file's own end of sequence first."""
    found = [token for name in ("eos", "eot") if (token := special(header, name)) is not None]
    kinds_key, texts_key = "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"
    if kinds_key in header and texts_key in header:
        control = {int(index) for index in (header.numbers(kinds_key) == CONTROL).nonzero()[0]}
        found += [index for index, text in header.texts_at(texts_key, control).items() if text in END_NAMES]
    return tuple(dict.fromkeys(found))
