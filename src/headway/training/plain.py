"""Plain training of adapters by autograd on whole sequences: the reference that token-level training is held to.

It shares no line with the hand-written passes; attention is torch's own scaled-dot-product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from headway.training.examples import Example
from headway.training.lora import Adapters, Pair, Site
from headway.training.stack import Block, Stack

Leaves = Mapping[Site, tuple[Tensor, Tensor]]
"""A and B as autograd's leaves."""


def leaves(adapters: Adapters) -> dict[Site, tuple[Tensor, Tensor]]:
    """Copies of the adapters that ask for gradients."""
    return {
        site: (pair.a.clone().requires_grad_(True), pair.b.clone().requires_grad_(True))
        for site, pair in adapters.pairs.items()
    }


def hidden(stack: Stack, scale: float, pairs: Leaves, tokens: Tensor, checkpointed: bool = False) -> Tensor:
    """tokens (T,) -> the last layer's output (T, d_model). checkpointed: keep only what enters each layer."""
    x = stack.embedding[tokens] * stack.embedding_scale
    for index, block in enumerate(stack.blocks):
        mine = {name: pair for (layer, name), pair in pairs.items() if layer == index}
        if checkpointed:
            x = checkpoint(_block, stack, block, scale, mine, x, use_reentrant=False)
        else:
            x = _block(stack, block, scale, mine, x)
    return x


def _block(stack: Stack, block: Block, scale: float, pairs: Mapping[str, tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    s, n = stack.sizes, x.shape[0]

    def linear(name: str, x: Tensor) -> Tensor:
        y = F.linear(x, block.linears[name], block.biases.get(name))
        if name not in pairs:
            return y
        a, b = pairs[name]
        return y + scale * ((x @ a.T) @ b.T)

    angles = torch.arange(n).float()[:, None] * block.frequencies
    turn = torch.complex(angles.cos() * block.rope_factor, angles.sin() * block.rope_factor)

    def heads(name: str, h: Tensor, rotated: bool = True) -> Tensor:
        y = linear(name, h).view(n, -1, s.head_dim).transpose(0, 1)
        if not rotated:
            return y
        z = torch.complex(*y.chunk(2, -1)) * turn
        return torch.cat([z.real, z.imag], -1)

    h = _norm(x, block.attention_norm, s.norm_eps)
    q, k, v = heads("self_attn.q_proj", h), heads("self_attn.k_proj", h), heads("self_attn.v_proj", h, False)
    k, v = (each.repeat_interleave(s.heads // s.kv_heads, 0) for each in (k, v))
    if block.window:
        behind = torch.arange(n)[:, None] - torch.arange(n)
        seen = (behind >= 0) & (behind < block.window)
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], seen, scale=s.query_scale)[0]
    else:
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=s.query_scale)[0]
    x = x + linear("self_attn.o_proj", out.transpose(0, 1).reshape(n, -1))
    h = _norm(x, block.mlp_norm, s.norm_eps)
    return x + linear("mlp.down_proj", F.silu(linear("mlp.gate_proj", h)) * linear("mlp.up_proj", h))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def loss(stack: Stack, scale: float, pairs: Leaves, example: Example, checkpointed: bool = False) -> Tensor:
    """Mean cross-entropy over the tokens to be learnt."""
    tokens = torch.from_numpy(example.tokens)
    x = hidden(stack, scale, pairs, tokens, checkpointed)
    logits = _norm(x, stack.final_norm, stack.sizes.norm_eps)[:-1] @ stack.head.T
    each = F.cross_entropy(logits, tokens[1:], reduction="none")
    return each[torch.from_numpy(example.learn[1:])].mean()


def gradients(stack: Stack, adapters: Adapters, examples: Sequence[Example]) -> tuple[dict[Site, Pair], float]:
    """Of the mean loss over the examples, and that mean."""
    pairs = leaves(adapters)
    mean = torch.stack([loss(stack, adapters.settings.scale, pairs, example) for example in examples]).mean()
    mean.backward()  # type: ignore[no-untyped-call]
    return {site: Pair(a.grad, b.grad) for site, (a, b) in pairs.items()}, float(mean.detach())  # type: ignore[arg-type]


def saved_bytes(stack: Stack, adapters: Adapters, example: Example, checkpointed: bool = False) -> int:
    """Bytes that autograd holds when a forward of the loss is done, each storage once, the model's own not counted."""
    pairs = leaves(adapters)
    own = {tensor.untyped_storage().data_ptr() for tensor in _frozen(stack)}
    own |= {tensor.untyped_storage().data_ptr() for pair in pairs.values() for tensor in pair}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = loss(stack, adapters.settings.scale, pairs, example, checkpointed)
    total = sum(held.values())
    del kept
    return total


def _frozen(stack: Stack) -> list[Tensor]:
    tensors = [stack.embedding, stack.head, stack.final_norm]
    for block in stack.blocks:
        tensors += [*block.linears.values(), *block.biases.values(), block.attention_norm, block.mlp_norm]
    return tensors


def relative_error(found: Mapping[Site, Pair], wanted: Mapping[Site, Pair]) -> float:
    """The largest of any matrix (Frobenius); an error where something is missing."""
    return max(
        float((ours - theirs).norm() / theirs.norm())
        for site, pair in wanted.items()
        for ours, theirs in ((found[site].a, pair.a), (found[site].b, pair.b))
    )
