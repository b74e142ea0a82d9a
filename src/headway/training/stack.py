"""`Stack`: the frozen blocks of a Llama-family model, as plain tensors of one type.

    h = norm(x; attention_norm); q, k, v = h Wq^T + bq, h Wk^T + bk, h Wv^T + bv; q, k = rope(q), rope(k)
    x = x + softmax(q k^T * query_scale) v Wo^T
    h = norm(x; mlp_norm);       x = x + (silu(h Wgate^T) * (h Wup^T)) Wdown^T
    logits = norm(x; final_norm) Whead^T

Linears carry the names of Hugging Face checkpoints ("self_attn.q_proj" ... "mlp.down_proj"), which adapters' files use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True)
class Sizes:
    """Of every block."""

    d_model: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    query_scale: float

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Block:
    """One layer. `linears` hold (out, in); `window`: keys a query sees, itself included, 0 = all before it."""

    linears: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    attention_norm: Tensor
    mlp_norm: Tensor
    frequencies: Tensor
    """float32 (head_dim / 2): radians that each pair turns by from one position to the next."""
    rope_factor: float = 1.0
    window: int = 0


@dataclass(frozen=True)
class Stack:
    """The whole network: `embedding` and `head` are (vocab, d_model)."""

    sizes: Sizes
    blocks: Sequence[Block]
    embedding: Tensor
    head: Tensor
    final_norm: Tensor
    embedding_scale: float = 1.0

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype

    @property
    def vocab(self) -> int:
        return self.head.shape[0]

    def to(self, dtype: torch.dtype) -> Stack:
        """The same values in another type."""
        blocks = [
            Block(
                {name: weight.to(dtype) for name, weight in block.linears.items()},
                {name: bias.to(dtype) for name, bias in block.biases.items()},
                block.attention_norm.to(dtype),
                block.mlp_norm.to(dtype),
                block.frequencies,
                block.rope_factor,
                block.window,
            )
            for block in self.blocks
        ]
        head = self.head.to(dtype)
        embedding = head if self.embedding is self.head else self.embedding.to(dtype)
        return Stack(self.sizes, blocks, embedding, head, self.final_norm.to(dtype), self.embedding_scale)
