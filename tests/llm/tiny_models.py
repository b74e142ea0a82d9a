"""Random models of a few kilobytes, written as Hugging Face folders and as GGUF files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf import quants as gguf_quants
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from headway.llm.tokenizer import gpt2_alphabet

WORDS = ("th", "the", "in", "ing", "Ġa", "Ġt", "Ġthe", "Ġo", "Ġof", "er", "on", "an", "and", "Ġand")
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
VOCAB = 256 + len(WORDS) + len(SPECIALS)
END = VOCAB - 2
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Texts of all tokens in order of their ids, and the merges."""
    tokens = [*gpt2_alphabet(), *WORDS, *SPECIALS]
    known = set(gpt2_alphabet())
    merges = []
    for word in WORDS:
        cut = next(c for c in range(1, len(word)) if word[:c] in known and word[c:] in known)
        merges.append((word[:cut], word[cut:]))
        known.add(word)
    return tokens, merges


def tiny_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of `VOCAB` tokens."""
    tokens, merges = tiny_vocabulary()
    ordinary = {token: index for index, token in enumerate(tokens) if token not in SPECIALS}
    tokenizer = Tokenizer(models.BPE(vocab=ordinary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": END,
}


def llama_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random float32 tensors under their names in a Hugging Face checkpoint."""
    random = np.random.default_rng(seed)
    d, ffn, head_dim = config["hidden_size"], config["intermediate_size"], config["hidden_size"] // 4
    kv = config["num_key_value_heads"] * head_dim

    def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
        return random.normal(0, 0.3, (rows, columns)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], d), "model.norm.weight": np.ones(d, "f4")}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        tensors |= {
            at + "self_attn.q_proj.weight": matrix(d, d),
            at + "self_attn.k_proj.weight": matrix(kv, d),
            at + "self_attn.v_proj.weight": matrix(kv, d),
            at + "self_attn.o_proj.weight": matrix(d, d),
            at + "mlp.gate_proj.weight": matrix(ffn, d),
            at + "mlp.up_proj.weight": matrix(ffn, d),
            at + "mlp.down_proj.weight": matrix(d, ffn),
            at + "input_layernorm.weight": random.uniform(0.5, 1.5, d).astype("f4"),
            at + "post_attention_layernorm.weight": random.uniform(0.5, 1.5, d).astype("f4"),
        }
    return tensors


class TinyFolder:
    """A Hugging Face folder to break: write it, change what `config` and `tensors` hold, write again."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path = path
        self.config: dict[str, Any] = dict(LLAMA)
        self.tensors = llama_tensors(self.config, seed)
        self.settings: dict[str, Any] = {"chat_template": CHAT, "eos_token": "<|im_end|>"}
        path.mkdir()
        tiny_tokenizer().save(str(path / "tokenizer.json"))
        self.write()

    def write(self) -> None:
        (self.path / "config.json").write_text(json.dumps(self.config))
        (self.path / "tokenizer_config.json").write_text(json.dumps(self.settings))
        save_file(self.tensors, self.path / "model.safetensors", metadata={"format": "pt"})

    def shard(self, count: int = 2) -> None:
        """Replace the single file by `count` shards and their index."""
        (self.path / "model.safetensors").unlink()
        names = sorted(self.tensors)
        weight_map = {}
        for index in range(count):
            file = f"model-{index + 1:05}-of-{count:05}.safetensors"
            part = {name: self.tensors[name] for name in names[index::count]}
            save_file(part, self.path / file)
            weight_map |= dict.fromkeys(part, file)
        self.write_index(weight_map)

    def write_index(self, weight_map: Mapping[str, Any]) -> None:
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}


def gguf_name(name: str, sandwich: bool) -> str:
    """A checkpoint's tensor name as converters write it into a GGUF file."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, part = name.split(".", 3)
    module, _, kind = part.rpartition(".")
    norms = (
        {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }
        if sandwich
        else {"post_attention_layernorm": "ffn_norm"}
    )
    return f"blk.{layer}.{({**GGUF_NAMES, **norms})[module]}.{kind}"


def neighbours(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of q or k reordered as converters do for Llama: rotated pairs become neighbours."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    architecture: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """A GGUF file of a checkpoint (names and config as in a Hugging Face folder), matrices stored as `kind`.

    `extra`: float, int or text values under `<architecture>.<key>`.
    """
    writer = GGUFWriter(str(path), architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    for key, value in (extra or {}).items():
        if isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        else:
            writer.add_uint32(f"{architecture}.{key}", value)
    _write_vocabulary(writer)
    for name, values in tensors.items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            values = neighbours(values, heads)
        if architecture == "gemma3" and "norm" in name:
            values = values + np.float32(1)
        stored = gguf_quants.quantize(values, kind) if values.ndim == 2 else values
        writer.add_tensor(
            gguf_name(name, architecture == "gemma3"),
            np.ascontiguousarray(stored),
            raw_dtype=kind if values.ndim == 2 else GGMLQuantizationType.F32,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(writer: GGUFWriter) -> None:
    tokens, merges = tiny_vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in SPECIALS else TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(END)
    writer.add_chat_template(CHAT)
