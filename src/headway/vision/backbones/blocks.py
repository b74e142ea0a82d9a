"""What the families' blocks are made of; each knows its shorter form for inference (`headway.vision.fold`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headway.vision.fold import affine_then, averaged, keeps_shape, plus_identity, scale_shift, then_affine


class ConvNorm(nn.Module):
    """Convolution without bias and batch norm: (n, inside, h, w) -> (n, out, ceil(h/stride), ceil(w/stride)).

    gamma: initial weight of the norm; 0 at the end of a residual makes its block begin as the identity.
    """

    def __init__(
        self, inside: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, gamma: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out)
        nn.init.constant_(self.norm.weight, gamma)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def folded(self) -> nn.Module:
        return then_affine(self.conv, *scale_shift(self.norm))


class NormLinear(nn.Module):
    """Batch norm and linear layer: (n, inside) -> (n, out)."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inside)
        self.linear = nn.Linear(inside, out)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))

    def folded(self) -> nn.Module:
        return affine_then(self.linear, *scale_shift(self.norm))


class Residual(nn.Module):
    """`x + inner(x)`; one convolution once `inner` has become a convolution that keeps its shape."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)

    def folded(self) -> nn.Module | None:
        inner = self.inner
        return plus_identity(inner) if isinstance(inner, nn.Conv2d) and keeps_shape(inner) else None


class TwoHeads(nn.Module):
    """A head trained on labels and one on a teacher: both outputs in training, their mean otherwise."""

    def __init__(self, labels: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.labels = labels
        self.teacher = teacher

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        both = self.labels(x), self.teacher(x)
        return both if self.training else (both[0] + both[1]) / 2

    def folded(self) -> nn.Module | None:
        if not (isinstance(self.labels, nn.Linear) and isinstance(self.teacher, nn.Linear)):
            return None
        return averaged(self.labels, self.teacher)


class SqueezeExcite(nn.Module):
    """Gates every channel by what its mean says of all channels: (n, c, h, w) -> the same shape."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(pooled))))


class DropPath(nn.Module):
    """Leaves out a whole branch for a random share of the images while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1.0 - self.rate))


def multiple_of(value: float, divisor: int = 8) -> int:
    """The nearest multiple, at least one."""
    return max(divisor, int(value + divisor / 2) // divisor * divisor)


def drop_rates(last: float, blocks: int) -> list[float]:
    """Rates of `DropPath` that rise evenly from 0 in the first block to `last` in the last."""
    return [last * index / max(1, blocks - 1) for index in range(blocks)]
