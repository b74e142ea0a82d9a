"""What networks over images are made of; the parts that fold know their shorter form (`headway.vision.fold`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.vision.fold import affine_then, averaged, keeps_shape, plus_identity, scale_shift, then_affine

ACTS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hswish": nn.Hardswish,
}


class SamePad(nn.Module):
    """Pads so that a convolution gives ceil(size / stride) pixels, the odd pixel to the right and below."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            max((math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[-2:]
        )
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, activation: (n, inside, h, w) -> (n, out, ceil(h/stride), ceil(w/stride)).

    same: TensorFlow's padding (`SamePad`) where there is a stride.
    """

    def __init__(
        self,
        inside: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        act: str = "relu6",
        bias: bool = False,
        eps: float = 1e-3,
        momentum: float = 0.1,
        same: bool = False,
    ) -> None:
        super().__init__()
        if same and stride > 1:
            self.pad = SamePad(kernel, stride)
        padding = 0 if same and stride > 1 else kernel // 2
        self.conv = nn.Conv2d(inside, out, kernel, stride, padding, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out, eps=eps, momentum=momentum)
        self.act = ACTS[act]()

    def folded(self) -> nn.Module:
        pad = [self.pad] if hasattr(self, "pad") else []
        act = [] if isinstance(self.act, nn.Identity) else [self.act]
        parts = [*pad, then_affine(self.conv, *scale_shift(self.norm)), *act]
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


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
    """Gates every channel by what its mean says of all channels: (n, c, h, w) -> the same shape.

    act: of the hidden units. MobileNetV3's gate is the hard sigmoid.
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        act: Callable[[Tensor], Tensor] = torch.relu,
        gate: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, channels, 1)
        self.act = act
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.fc1(pooled))))


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


def make_divisible(value: float, divisor: int = 8) -> int:
    """The nearest multiple, at least one, that loses less than a tenth of `value`."""
    rounded = multiple_of(value, divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def drop_rates(last: float, blocks: int) -> list[float]:
    """Rates of `DropPath` that rise evenly from 0 in the first block to `last` in the last."""
    return [last * index / max(1, blocks - 1) for index in range(blocks)]
