"""One layer's window of tokens, forward and backward, written by hand (FlexLLM, arXiv 2402.18789, sections 4 and 6).

Kept of a token from its forward to its backward, in numbers (remat="light"; d model, H heads, F ffn, kv key size):

    x_in d | x_mid d | q H*head_dim | k, v 2 kv | log-sum-exp H | gate, up 2 F

Made again instead: the normed inputs, attention's probabilities and output, silu(gate) * up, A x. "mlp" makes gate and
up again too (two products more); "none" also keeps the normed inputs and silu(gate) * up. A layer keeps only what its
own backward will read: below the lowest adapter k and v alone, and in the lowest layer nothing of attention when only
its MLP is adapted. Gradients of frozen weights are never formed.

The backward of a window [a, b) needs every later window of the same layer done: they have added to dK, dV of [a, b).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from headway.training.lora import Adapters, Pair, Site
from headway.training.stack import Block, Stack

Remat = Literal["light", "mlp", "none"]
QUERIES = 128
"""Queries whose scores are held at once."""
Q, K, V, O = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"  # noqa: E741
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def norm_backward(x: Tensor, weight: Tensor, eps: float, dy: Tensor) -> Tensor:
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    dy = dy * weight
    return r * dy - x * (r.pow(3) * (x * dy).mean(-1, keepdim=True))


def rotate(x: Tensor, low: int, block: Block, back: bool = False) -> Tensor:
    """x (n, heads, head_dim) at positions low, low + 1 ...; `back`: the transpose, which gradients take."""
    positions = torch.arange(low, low + x.shape[0]).to(torch.float32)
    angles = positions[:, None, None] * block.frequencies
    cos = (angles.cos() * block.rope_factor).to(x.dtype)
    sin = (angles.sin() * block.rope_factor).to(x.dtype)
    if back:
        sin = -sin
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@dataclass
class Kept:
    """What one layer holds of the sequence in work: rows are tokens."""

    k: Tensor
    v: Tensor
    """(kv_heads, T, head_dim), k rotated."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """By name, (T, width); lse is (T, heads)."""

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes + sum(row.nbytes for row in self.rows.values())


class Layer:
    """The two passes of one layer. `gradients` are added to."""

    def __init__(self, stack: Stack, index: int, adapters: Adapters, remat: Remat) -> None:
        self.block, self.sizes, self.index = stack.blocks[index], stack.sizes, index
        self.dtype = stack.dtype
        self.adapters = adapters
        self.scale = adapters.settings.scale
        self.remat = remat
        mine = {linear for layer, linear in adapters.pairs if layer == index}
        self.trained = index >= adapters.lowest
        self.passes_on = index > adapters.lowest
        self.through_attention = self.passes_on or bool(mine & {Q, K, V})
        self.into_attention = self.through_attention or O in mine
        self.into_mlp = self.into_attention or bool(mine & {GATE, UP})
        self.kept = self._kept(mine)

    def _kept(self, mine: set[str]) -> dict[str, int]:
        """Width of everything kept for each token beside keys and values."""
        s = self.sizes
        if not self.trained:
            return {}
        light = self.remat != "mlp"
        wanted: dict[str, tuple[bool, int]] = {
            "x_in": (self.through_attention, s.d_model),
            "q": (self.into_attention, s.q_size),
            "lse": (self.through_attention, s.heads),
            "x_mid": (self.into_mlp or not light, s.d_model),
            "gate": (light, s.ffn),
            "up": (light, s.ffn),
            "h_in": (self.remat == "none" and bool(mine & {Q, K, V}), s.d_model),
            "h_mid": (self.remat == "none" and bool(mine & {GATE, UP}), s.d_model),
            "product": (self.remat == "none" and DOWN in mine, s.ffn),
        }
        return {name: width for name, (needed, width) in wanted.items() if needed}

    def begin(self, length: int) -> Kept:
        """Room for a sequence."""
        s = self.sizes
        kv = (s.kv_heads, length, s.head_dim)
        rows = {name: torch.empty((length, width), dtype=self.dtype) for name, width in self.kept.items()}
        return Kept(torch.empty(kv, dtype=self.dtype), torch.empty(kv, dtype=self.dtype), rows)

    # Forward

    def forward(self, x: Tensor, low: int, kept: Kept) -> Tensor:
        """x (n, d_model), tokens from `low` on, all before them done -> the layer's output."""
        s, block, high = self.sizes, self.block, low + x.shape[0]
        rows = kept.rows

        def keep(name: str, value: Tensor) -> None:
            if name in rows:
                rows[name][low:high] = value

        keep("x_in", x)
        h = norm(x, block.attention_norm, s.norm_eps)
        keep("h_in", h)
        q = rotate(self.linear(Q, h).view(-1, s.heads, s.head_dim), low, block)
        kept.k[:, low:high] = rotate(self.linear(K, h).view(-1, s.kv_heads, s.head_dim), low, block).transpose(0, 1)
        kept.v[:, low:high] = self.linear(V, h).view(-1, s.kv_heads, s.head_dim).transpose(0, 1)
        keep("q", q.reshape(-1, s.q_size))
        out, lse = self.attend(q, low, kept)
        keep("lse", lse)
        x = x + self.linear(O, out)
        keep("x_mid", x)
        h = norm(x, block.mlp_norm, s.norm_eps)
        keep("h_mid", h)
        gate, up = self.linear(GATE, h), self.linear(UP, h)
        keep("gate", gate)
        keep("up", up)
        product = F.silu(gate).mul_(up)
        keep("product", product)
        return x + self.linear(DOWN, product)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x W^T + b + (alpha / r) (x A^T) B^T."""
        y = F.linear(x, self.block.linears[name], self.block.biases.get(name))
        pair = self.adapters.pairs.get((self.index, name))
        return y if pair is None else y.addmm_(x @ pair.a.T, pair.b.T, alpha=self.scale)

    def _scores(self, q: Tensor, low: int, kept: Kept) -> tuple[Tensor, int]:
        """Grouped queries (kv_heads, group * n, head_dim) from `low` on -> masked scores, and the first key seen."""
        block = self.block
        n = q.shape[1] // (self.sizes.heads // self.sizes.kv_heads)
        first = max(low - block.window + 1, 0) if block.window else 0
        scores = torch.baddbmm(
            torch.empty((), dtype=q.dtype), q, kept.k[:, first : low + n].transpose(1, 2), beta=0,
            alpha=self.sizes.query_scale,
        )  # fmt: skip
        behind = torch.arange(low, low + n)[:, None] - torch.arange(first, low + n)
        hidden = behind < 0
        if block.window:
            hidden |= behind >= block.window
        scores.view(q.shape[0], -1, n, low + n - first).masked_fill_(hidden, -torch.inf)
        return scores, first

    def _grouped(self, x: Tensor) -> Tensor:
        """(n, heads * head_dim) or (n, heads, head_dim) -> (kv_heads, group * n, head_dim)."""
        s = self.sizes
        heads = x.reshape(x.shape[0], s.kv_heads, -1, s.head_dim)
        return heads.permute(1, 2, 0, 3).reshape(s.kv_heads, -1, s.head_dim)

    def _flat(self, x: Tensor, n: int) -> Tensor:
        """The inverse of `_grouped`: (n, heads * head_dim)."""
        s = self.sizes
        return x.view(s.kv_heads, -1, n, s.head_dim).permute(2, 0, 1, 3).reshape(n, -1)

    def attend(self, q: Tensor, low: int, kept: Kept) -> tuple[Tensor, Tensor]:
        """q (n, heads, head_dim), rotated -> attention's output (n, heads * head_dim), log-sum-exp (n, heads)."""
        s, outs, sums = self.sizes, [], []
        for at in range(0, q.shape[0], QUERIES):
            part = q[at : at + QUERIES]
            n = part.shape[0]
            scores, first = self._scores(self._grouped(part), low, kept)
            lse = scores.logsumexp(-1, keepdim=True)
            outs.append(self._flat(scores.sub_(lse).exp_() @ kept.v[:, first : low + n], n))
            sums.append(lse.view(s.heads, n).T)
            low += n
        return torch.cat(outs), torch.cat(sums)

    # Backward

    def backward(
        self, dy: Tensor, low: int, kept: Kept, dk: Tensor, dv: Tensor, gradients: dict[Site, Pair]
    ) -> Tensor | None:
        """dy (n, d_model) of the layer's output, tokens from `low` on -> of its input; None where nobody needs it.

        dk, dv: (kv_heads, T, head_dim), what later windows of this layer have added; this window adds to all before it.
        """
        s, block, high = self.sizes, self.block, low + dy.shape[0]
        rows = {name: row[low:high] for name, row in kept.rows.items()}
        if "gate" in rows:
            gate, up = rows["gate"], rows["up"]
        else:
            h = norm(rows["x_mid"], block.mlp_norm, s.norm_eps)
            gate, up = self.linear(GATE, h), self.linear(UP, h)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        product = rows.get("product")
        d_product = self.linear_backward(
            DOWN, dy, silu * up if product is None else product, gradients, wanted=self.into_mlp
        )
        if d_product is None:
            return None
        d_up = d_product * silu
        d_gate = d_product.mul_(up).mul_(sigmoid).mul_(1.0 + gate * (1.0 - sigmoid))
        trains_mlp = any((self.index, name) in self.adapters.pairs for name in (GATE, UP))
        h = rows.get("h_mid", norm(rows["x_mid"], block.mlp_norm, s.norm_eps) if trains_mlp else dy)
        onward = self.into_attention
        d_h = self.linear_backward(GATE, d_gate, h, gradients, wanted=onward)
        d_h2 = self.linear_backward(UP, d_up, h, gradients, wanted=onward)
        if d_h is None or d_h2 is None:
            return None
        d_mid = dy + norm_backward(rows["x_mid"], block.mlp_norm, s.norm_eps, d_h.add_(d_h2))
        out = dy
        if (self.index, O) in self.adapters.pairs:
            out, _ = self.attend(rows["q"].view(-1, s.heads, s.head_dim), low, kept)
        d_out = self.linear_backward(O, d_mid, out, gradients, wanted=self.through_attention)
        if d_out is None:
            return None
        d_q = self.attend_backward(d_out, rows["q"], rows["lse"], low, kept, dk, dv)
        d_q = rotate(d_q.view(-1, s.heads, s.head_dim), low, block, back=True).reshape(-1, s.q_size)
        d_k = rotate(dk[:, low:high].transpose(0, 1), low, block, back=True).reshape(-1, s.kv_size)
        d_v = dv[:, low:high].transpose(0, 1).reshape(-1, s.kv_size)
        trains_qkv = any((self.index, name) in self.adapters.pairs for name in (Q, K, V))
        h = rows.get("h_in", norm(rows["x_in"], block.attention_norm, s.norm_eps) if trains_qkv else dy)
        parts = [
            self.linear_backward(name, d, h, gradients, wanted=self.passes_on)
            for name, d in ((Q, d_q), (K, d_k), (V, d_v))
        ]
        if not self.passes_on:
            return None
        d_h = torch.stack([part for part in parts if part is not None]).sum(0)
        return d_mid + norm_backward(rows["x_in"], block.attention_norm, s.norm_eps, d_h)

    def linear_backward(
        self, name: str, dy: Tensor, x: Tensor, gradients: dict[Site, Pair], wanted: bool
    ) -> Tensor | None:
        """Add to dA and dB; the input's gradient where it is `wanted`. x is read only where there is an adapter."""
        site = (self.index, name)
        pair = self.adapters.pairs.get(site)
        if pair is None:
            return dy @ self.block.linears[name] if wanted else None
        into = gradients[site]
        d_low = dy @ pair.b
        into.b.addmm_(dy.T, x @ pair.a.T, alpha=self.scale)
        into.a.addmm_(d_low.T, x, alpha=self.scale)
        return (dy @ self.block.linears[name]).addmm_(d_low, pair.a, alpha=self.scale) if wanted else None

    def attend_backward(
        self, d_out: Tensor, q: Tensor, lse: Tensor, low: int, kept: Kept, dk: Tensor, dv: Tensor
    ) -> Tensor:
        """dQ of the window; dK and dV are added to. Row sums of P * dP stand for those of dO * O, which are equal."""
        s, found = self.sizes, []
        for at in range(0, q.shape[0], QUERIES):
            part, d_part, sums = q[at : at + QUERIES], d_out[at : at + QUERIES], lse[at : at + QUERIES]
            n = part.shape[0]
            grouped, d_grouped = self._grouped(part), self._grouped(d_part)
            p, first = self._scores(grouped, low + at, kept)
            p.sub_(sums.T.reshape(s.kv_heads, -1, 1)).exp_()
            end = low + at + n
            dv[:, first:end].baddbmm_(p.transpose(1, 2), d_grouped)
            dp = d_grouped @ kept.v[:, first:end].transpose(1, 2)
            ds = dp.sub_((p * dp).sum(-1, keepdim=True)).mul_(p).mul_(s.query_scale)
            dk[:, first:end].baddbmm_(ds.transpose(1, 2), grouped)
            found.append(self._flat(ds @ kept.k[:, first:end], n))
        return torch.cat(found)
