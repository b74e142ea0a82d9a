"""The frozen stack that the trainer works on, from a language model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from headway.core.errors import BadInput
from headway.core.packed_modules import tensor_of
from headway.llm.families.base import Architecture
from headway.llm.families.family import CHECKPOINT_MATRICES
from headway.llm.language_model import LanguageModel
from headway.training.stack import Block, Sizes, Stack


def stack_of(model: LanguageModel) -> Stack:
    """Every weight at its exact value, in float32.

    Raises `BadInput` for a network that the trainer's hand-written passes do not cover.
    """
    arch = model.architecture
    _check(model.name, arch)
    vectors = model.vectors

    def vector(name: str) -> Tensor:
        return torch.from_numpy(np.array(vectors[name], np.float32))

    head = tensor_of(model.weight("head"))
    embedding = head if arch.tied else tensor_of(model.weight("embedding"))
    blocks = [_block(model, index, vector) for index in range(len(arch.layers))]
    sizes = Sizes(
        arch.d_model, arch.ffn, arch.heads, arch.kv_heads, arch.head_dim, arch.norm_eps, arch.query_scale
    )  # fmt: skip
    return Stack(sizes, blocks, embedding, head, vector("final_norm.weight"), arch.embedding_scale)


def _check(name: str, arch: Architecture) -> None:
    other = {
        "norms of queries and keys": arch.qk_norm,
        "norms after each half of a layer": arch.post_norms,
        "capped scores": bool(arch.attention_softcap or arch.final_softcap),
        f"{arch.activation} for silu": arch.activation != "silu",
    }
    found = [what for what, there in other.items() if there]
    if found:
        raise BadInput(f"{name} has {found[0]}", "adapters are trained on Llama-like models (Llama, SmolLM, Qwen 2)")


def _block(model: LanguageModel, index: int, vector: Callable[[str], Tensor]) -> Block:
    arch, at = model.architecture, f"layers.{index}"
    layer = arch.layers[index]
    linears = {name: tensor_of(model.weight(f"{at}.{site}")) for site, name in CHECKPOINT_MATRICES.items()}
    biases = {
        name: vector(f"{at}.{site}.bias")
        for site, name in CHECKPOINT_MATRICES.items()
        if f"{at}.{site}.bias" in arch.vectors
    }
    return Block(
        linears,
        biases,
        vector(f"{at}.attention_norm.weight"),
        vector(f"{at}.mlp_norm.weight"),
        torch.from_numpy(layer.rope.inverse_frequencies(arch.head_dim)),
        layer.rope.attention_factor,
        layer.window,
    )
