"""Quantisers of tensors while networks train: rounding that passes gradients, fixed and learned ranges.

Symmetric weights with a threshold (the largest weight, or by divergence where bits are few), clipping at a learned
limit (PACT, arXiv:1805.06085), and learned ranges with a zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SMALLEST = 1e-8
"""Least size of a step, and of a range: a tensor of zeros has one too."""
FEW_BITS = 5
"""Below so many bits, the threshold is that of least divergence."""
MOST_BINS = 256
LEVELS = 255
"""Largest code of a `Range`; codes are 0 to 255."""


def through(rounded: Tensor, x: Tensor) -> Tensor:
    """The value of the first, the gradient of the second."""
    return _Through.apply(rounded, x)  # type: ignore[no-any-return,no-untyped-call]


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rounded: Tensor, x: Tensor) -> Tensor:
        return rounded.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def rounded(x: Tensor) -> Tensor:
    """The nearest integers, halves upwards; the gradient of `x`."""
    return through(torch.floor(x + 0.5), x)


def symmetric_codes(x: Tensor, scale: Tensor, top: int) -> Tensor:
    """Whole numbers of steps of size `scale`, -top to top; gradients pass within the range."""
    return rounded((x / scale).clamp(-top, top))


def divergence_threshold(x: Tensor, levels: int) -> float:
    """Where to clip |x| (of any shape) so that `levels` values from 0 on keep its distribution best.

    By the divergence between the cumulative shares of a histogram (sqrt(n) bins, 256 at most) and what is left of
    them after they are clipped and held at `levels` points (APQ's and HAQ's released code). Few values are not clipped.
    """
    size = np.abs(x.detach().numpy()).ravel()
    largest = float(size.max(initial=0.0))
    bins = max(1, min(MOST_BINS, int(np.ceil(np.sqrt(size.size)))))
    if largest <= SMALLEST or levels + 1 > bins:
        return largest
    shares, edges = np.histogram(size, bins=bins, range=(0.0, largest))
    whole = np.cumsum(shares) / size.size
    best, found = np.inf, largest
    for kept in range(levels + 1, bins + 1):
        clipped = whole.copy()
        clipped[kept - 1 :] = 1.0
        fine, coarse = np.linspace(0, 1, kept), np.linspace(0, 1, levels)
        held = clipped.copy()
        held[:kept] = np.interp(fine, coarse, np.interp(coarse, fine, clipped[:kept]))
        some = (whole > 0) & (held > 0)
        divergence = float(((whole - held)[some] * np.log2(whole[some] / held[some])).sum())
        if divergence < best:
            best, found = divergence, float(edges[kept])
    return found


def weight_threshold(weight: Tensor, bits: int) -> float:
    """The largest |w| that `bits` are to hold."""
    if bits < FEW_BITS:
        return divergence_threshold(weight, 2 ** (bits - 1))
    return float(weight.detach().abs().max())


class Symmetric(nn.Module):
    """A weight of any shape on at most 2^bits - 1 levels up to a fixed threshold; all gradients pass."""

    threshold: Tensor

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("threshold", torch.tensor(1.0))
        self.see(weight)

    def see(self, weight: Tensor) -> None:
        """Set the threshold by what the weight is now."""
        self.threshold.fill_(weight_threshold(weight, self.bits))

    def forward(self, weight: Tensor) -> Tensor:
        top = 2 ** (self.bits - 1) - 1
        scale = self.threshold.clamp_min(SMALLEST) / top
        kept = torch.empty_like(weight)  # has the strides by which a convolution chooses its layout
        return through(kept.copy_(symmetric_codes(weight.detach(), scale, top) * scale), weight)


class Clipped(nn.Module):
    """Values of any shape, clipped at a learned limit and rounded.

    signed: -limit to limit in 2^bits - 1 levels; else 0 to limit in 2^bits.
    """

    least = 1e-3
    """A limit that training drives below it counts as this."""

    def __init__(self, bits: int, signed: bool, limit: float = 6.0) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.first = limit
        self.limit = nn.Parameter(torch.tensor(limit))

    @property
    def top(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Set the limit by a batch: the largest |x|, at most what it began with; by divergence for few bits."""
        limit = min(self.first, float(x.abs().max()))
        if self.bits < FEW_BITS:
            limit = min(limit, divergence_threshold(x if self.signed else x.clamp_min(0), self.top + 1))
        self.limit.fill_(max(limit, self.least))

    def forward(self, x: Tensor) -> Tensor:
        return _Clip.apply(x, self.limit, self.least, self.top, self.signed)  # type: ignore[no-any-return,no-untyped-call]


class _Clip(torch.autograd.Function):
    """Gradients pass to `x` inside the limits, and to the limit outside (one each above, minus one each below)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Tensor, least: float, top: int, signed: bool) -> Tensor:
        ctx.high = max(float(limit), least)
        ctx.signed = signed
        ctx.save_for_backward(x)
        scale = ctx.high / top
        return (x / scale).round_().clamp_(-top if signed else 0, top).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        side = (x - x.clamp(-ctx.high if ctx.signed else 0.0, ctx.high)).sign_()  # 1 above, -1 below, 0 inside
        outside = gradient * side
        inside = torch.addcmul(gradient, outside, side, value=-1)
        limit = outside.sum() if ctx.signed else (gradient * side.clamp_(0)).sum()
        return inside, limit, None, None, None


class Range(nn.Module):
    """Codes of the values at one place, of any shape: asymmetric, one range for all."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.zeros(()))
        self.high = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.tensor(False))

    def scale_zero(self) -> tuple[Tensor, Tensor]:
        """Size of a step, and the code of 0; the range is widened to hold 0."""
        low, high = self.low.clamp_max(0.0), self.high.clamp_min(0.0)
        scale = ((high - low) / LEVELS).clamp_min(SMALLEST)
        exact = -low / scale
        return scale, through(exact.round(), exact).clamp(0, LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """Values rounded to the range's steps; the first batch sets the range."""
        if self.training and not bool(self.seen):
            self.low.data.copy_(x.detach().amin())
            self.high.data.copy_(x.detach().amax())
            self.seen.fill_(True)
        scale, zero = self.scale_zero()
        return (rounded((x / scale + zero).clamp(0, LEVELS)) - zero) * scale

    def steps(self, x: Tensor) -> Tensor:
        """Whole numbers of steps from 0, in -255 to 255."""
        scale, zero = self.scale_zero()
        return torch.floor((x / scale + zero).clamp(0, LEVELS) + 0.5) - zero
