"""The readable torch network of every family, built from an `Architecture`; every faster path is held to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.packed_modules import tensor_of
from headway.core.weight import Weight
from headway.llm.families.base import F32, Architecture, Layer
from headway.llm.runtime import I64

QUERY_BLOCK = 512
"""Queries whose scores are held at once: bounds the memory of a long prompt."""


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Cache:
    """Keys (rotated) and values of every layer: two tensors (batch, kv_heads, length, head_dim) each."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    @property
    def length(self) -> int:
        return 0 if self.keys[0] is None else self.keys[0].shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old_k, old_v = self.keys[layer], self.values[layer]
        k = k if old_k is None else torch.cat([old_k, k], dim=2)
        v = v if old_v is None else torch.cat([old_v, v], dim=2)
        self.keys[layer], self.values[layer] = k, v
        return k, v

    def rewind(self, length: int) -> None:
        self.keys = [None if k is None or length == 0 else k[:, :, :length] for k in self.keys]
        self.values = [None if v is None or length == 0 else v[:, :, :length] for v in self.values]


def rotate(x: Tensor, positions: Tensor, layer: Layer) -> Tensor:
    """Rotary embedding of x (batch, heads, T, head_dim) at `positions` (T,), pairs (j, j + head_dim / 2)."""
    frequencies = torch.from_numpy(layer.rope.inverse_frequencies(x.shape[-1])).to(x.device)
    angles = positions.to(torch.float32)[:, None] * frequencies
    cos = (angles.cos() * layer.rope.attention_factor).to(x.dtype)
    sin = (angles.sin() * layer.rope.attention_factor).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def capped(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap) if cap else x


class Attention(nn.Module):
    """Grouped-query causal attention, optionally within a window."""

    def __init__(self, arch: Architecture, index: int) -> None:
        super().__init__()
        self.arch, self.index, self.layer = arch, index, arch.layers[index]
        self.q = nn.Linear(arch.d_model, arch.q_size, bias=arch.qkv_bias)
        self.k = nn.Linear(arch.d_model, arch.kv_size, bias=arch.qkv_bias)
        self.v = nn.Linear(arch.d_model, arch.kv_size, bias=arch.qkv_bias)
        self.o = nn.Linear(arch.q_size, arch.d_model, bias=False)
        self.q_norm = Norm(arch.head_dim, arch.norm_eps) if arch.qk_norm else nn.Identity()
        self.k_norm = Norm(arch.head_dim, arch.norm_eps) if arch.qk_norm else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.arch.head_dim)
        q = rotate(self.q_norm(self.q(x).view(heads)).transpose(1, 2), positions, self.layer)
        k = rotate(self.k_norm(self.k(x).view(heads)).transpose(1, 2), positions, self.layer)
        v = self.v(x).view(heads).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.index, k, v)
        shared = self.arch.heads // self.arch.kv_heads
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        parts = [
            self.attend(q[:, :, at : at + QUERY_BLOCK], k, v, positions[at : at + QUERY_BLOCK])
            for at in range(0, length, QUERY_BLOCK)
        ]
        return self.o(torch.cat(parts, dim=2).transpose(1, 2).reshape(batch, length, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """(batch, heads, n, head_dim) queries at `positions` over all keys, key j standing at position j."""
        scores = capped(q @ k.transpose(2, 3) * self.arch.query_scale, self.arch.attention_softcap)
        behind = positions[:, None] - torch.arange(k.shape[2], device=q.device)
        hidden = behind < 0
        if self.layer.window:
            hidden |= behind >= self.layer.window
        return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ v


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.activation = arch.activation
        self.gate = nn.Linear(arch.d_model, arch.ffn, bias=False)
        self.up = nn.Linear(arch.d_model, arch.ffn, bias=False)
        self.down = nn.Linear(arch.ffn, arch.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        gate = F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")
        return self.down(gate * self.up(x))


class Block(nn.Module):
    """One layer: attention and MLP, each added to what it read."""

    def __init__(self, arch: Architecture, index: int) -> None:
        super().__init__()
        self.attention_norm = Norm(arch.d_model, arch.norm_eps)
        self.attention = Attention(arch, index)
        self.post_attention_norm = Norm(arch.d_model, arch.norm_eps) if arch.post_norms else nn.Identity()
        self.mlp_norm = Norm(arch.d_model, arch.norm_eps)
        self.mlp = MLP(arch)
        self.post_mlp_norm = Norm(arch.d_model, arch.norm_eps) if arch.post_norms else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        x = x + self.post_attention_norm(self.attention(self.attention_norm(x), positions, cache))
        return x + self.post_mlp_norm(self.mlp(self.mlp_norm(x)))


class Reference(nn.Module):
    """The whole network. Parameters are named as `Architecture.sites` and `Architecture.vectors` say."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        if not arch.tied:
            self.embedding = nn.Embedding(arch.vocab, arch.d_model)
        self.layers = nn.ModuleList(Block(arch, index) for index in range(len(arch.layers)))
        self.final_norm = Norm(arch.d_model, arch.norm_eps)
        self.head = nn.Linear(arch.d_model, arch.vocab, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.head.weight) if self.arch.tied else self.embedding(tokens)
        return x * self.arch.embedding_scale

    def hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """tokens: int64 (batch, T), after those in `cache` -> what the head reads, (batch, T, d_model)."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x = self.embed(tokens)
        for block in self.layers:
            x = block(x, positions, cache)
        return self.final_norm(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """tokens: int64 (batch, T), after those in `cache` -> logits (batch, T, vocab)."""
        return capped(self.head(self.hidden(tokens, cache)), self.arch.final_softcap)


def build(arch: Architecture, weights: Mapping[str, Weight], vectors: Mapping[str, F32]) -> Reference:
    """The module over the exact float32 value of every weight."""
    with torch.device("meta"):
        module = Reference(arch)
    state = {f"{name}.weight": tensor_of(weight) for name, weight in weights.items()}
    state |= {name: torch.from_numpy(np.array(vector, np.float32)) for name, vector in vectors.items()}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


class TorchSession:
    """One sequence of the torch runtime."""

    def __init__(self, module: Reference) -> None:
        self._module = module
        self._cache = Cache(len(module.arch.layers))

    @property
    def length(self) -> int:
        return self._cache.length

    def feed(self, tokens: I64, every: bool = False) -> F32:
        """See `headway.llm.runtime.Session.feed`."""
        module = self._module
        with torch.inference_mode():
            hidden = module.hidden(torch.from_numpy(np.ascontiguousarray(tokens, np.int64))[None], self._cache)
            hidden = hidden[0] if every else hidden[0, -1]
            logits: F32 = capped(module.head(hidden), module.arch.final_softcap).numpy()
        return logits

    def rewind(self, length: int) -> None:
        self._cache.rewind(length)


class TorchRuntime:
    """The `Runtime` that runs the readable module as it stands."""

    def __init__(self, architecture: Architecture, weights: Mapping[str, Weight], vectors: Mapping[str, F32]) -> None:
        self.module = build(architecture, weights, vectors)

    def begin(self, capacity: int) -> TorchSession:
        """See `headway.llm.runtime.Runtime.begin`; the cache grows as it is fed."""
        return TorchSession(self.module)
