"""The three ways in which PATNet mixes pixels: partial convolution, with attention on the channels left untouched."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.fold import affine_then, scale_shift, then_affine

FARTHEST = 20
"""Distances up to this are rounded, longer ones fall into buckets that widen (image RPE, alpha = 20)."""
BUCKETS = 40
"""Largest index; the table has as many for negative distances, which a Euclidean one never uses (beta = 40)."""


class ChannelGate(nn.Module):
    """A gate for every channel from the means and deviations of all: (n, c, h, w) -> (n, c, 1, 1) in [0, 1].

    The layer is dense: 2 c^2 weights. Deviations are those of a sample (divisor h w - 1), and 0 for a single pixel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (1, 2), bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        deviation, mean = torch.std_mean(wide, (2, 3), correction=1 if pixels > 1 else 0)
        style = torch.stack([mean, deviation], -1).to(x.dtype)  # (n, c, 2)
        return F.hardsigmoid(self.norm(self.conv(style.unsqueeze(2))))

    def folded(self) -> nn.Module:
        self.conv = then_affine(self.conv, *scale_shift(self.norm))
        self.norm = nn.Identity()
        return self


def filtered(channels: int, n_div: int) -> tuple[nn.Conv2d, int]:
    """The convolution of the first channels, and how many it leaves untouched; raises `BadInput` for a bad share."""
    if n_div < 2 or channels % n_div:
        raise BadInput(f"{channels} channels are not divisible by n_div={n_div}", "choose a divisor of 2 or more")
    part = channels // n_div
    return nn.Conv2d(part, part, 3, padding=1, bias=False), channels - part


class ChannelMixer(nn.Module):
    """PAT_ch: 3x3 convolution of the first channels, gates and a norm on the others; no residual of its own."""

    own_residual = False

    def __init__(self, channels: int, n_div: int, heads: int = 0) -> None:
        super().__init__()
        self.filter, rest = filtered(channels, n_div)
        self.parts = [channels - rest, rest]
        self.gate = ChannelGate(rest)
        self.norm: nn.Module = nn.BatchNorm2d(rest)

    def forward(self, x: Tensor) -> Tensor:
        seen, rest = torch.split(x, self.parts, 1)
        return torch.cat([self.filter(seen), self.norm(rest * self.gate(rest))], 1)


class PixelAttention(nn.Module):
    """Attention between pixels with a bias by distance: (n, c, h, w) -> the same shape.

    Image RPE (arXiv:2107.14222): Euclidean, without content; a table of [heads, 81].
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise BadInput(f"{channels} channels are not divisible by heads={heads}", "choose a divisor")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.zeros(heads, 2 * BUCKETS + 1))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        tokens = x.flatten(2).mT
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.position[:, distance_index(height, width, x.device)]
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, bias.unsqueeze(0), drop)
        out = self.proj(mixed.transpose(1, 2).flatten(2))
        return F.dropout(out, drop, self.training).mT.reshape(n, channels, height, width)

    def attention_macs(self, x: Tensor) -> int:
        tokens = x.shape[2] * x.shape[3]
        return 2 * x.shape[0] * tokens * tokens * x.shape[1]


def distance_index(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Rows of the table of positions for every pair of pixels: (h w, h w) int64."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    distance = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).double().sqrt()
    far = FARTHEST + FARTHEST * torch.log(distance.clamp(min=1.0) / FARTHEST) / math.log(8.0)
    near = distance.round()
    return (BUCKETS + torch.where(near <= FARTHEST, near, far.round().clamp(max=BUCKETS))).long().to(device)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel: (n, c, h, w) -> the same shape."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(channels))
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(channels))
        self.channels, self.eps = channels, eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), (self.channels,), self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class PixelMixer(nn.Module):
    """PAT_sf: 3x3 convolution of the first channels, attention between pixels on the others; added to its input."""

    own_residual = True

    def __init__(self, channels: int, n_div: int, heads: int) -> None:
        super().__init__()
        self.filter, rest = filtered(channels, n_div)
        self.parts = [channels - rest, rest]
        self.norm = ChannelNorm(rest)
        self.attn = PixelAttention(rest, heads)

    def forward(self, x: Tensor) -> Tensor:
        seen, rest = torch.split(x, self.parts, 1)
        return torch.cat([self.filter(seen), self.attn(self.norm(rest))], 1)

    def folded(self) -> nn.Module:
        assert self.norm.weight is not None and self.norm.bias is not None
        self.attn.qkv = affine_then(self.attn.qkv, self.norm.weight, self.norm.bias)
        self.norm.weight = self.norm.bias = None
        return self
