"""`LinearBlock`: a convolution that is trained as two and run as one (SESR, arXiv:2103.09404).

    expanded     x -> k x k, inside -> wide -> 1 x 1, wide -> out  (+ x where inside = out)
    collapsed    x -> k x k, inside -> out                         W = W2 W1 (+ 1 at the centre), b = W2 b1 + b2

Both give the same outputs and, to W1 and W2, the same gradients. Only the first convolution pads, so borders agree too.
The collapsed form costs `inside k^2 wide out` multiply-adds a step beside the narrow convolution itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.fold import plus_identity, then_pointwise


class LinearBlock(nn.Module):
    """(n, inside, h, w) -> (n, out, h, w).

    `collapsed` says in which form `forward` runs; both train the same weights.
    """

    def __init__(self, inside: int, out: int, kernel: int, wide: int, bias: bool = False) -> None:
        """kernel: odd. wide: channels between the two convolutions. Raises `BadInput` for an even kernel."""
        super().__init__()
        if kernel % 2 == 0:
            raise BadInput(f"a linear block of {kernel}x{kernel}", "choose an odd kernel")
        self.expand = nn.Conv2d(inside, wide, kernel, padding=kernel // 2, bias=bias)
        self.project = nn.Conv2d(wide, out, 1, bias=bias)
        self.collapsed = True
        for layer in (self.expand, self.project):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    @property
    def residual(self) -> bool:
        """Whether the input is added: the update is then no mere rescaling of plain gradient descent."""
        return self.expand.in_channels == self.project.out_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.collapsed:
            return F.conv2d(x, *self.collapse(), padding=self.expand.padding)
        y = self.project(self.expand(x))
        return x + y if self.residual else y

    def collapse(self) -> tuple[Tensor, Tensor | None]:
        """Weight (out, inside, k, k) and bias of the one convolution, as functions of the two."""
        mix = self.project.weight.flatten(1)
        weight = torch.einsum("oe,eikl->oikl", mix, self.expand.weight)
        if self.residual:
            centre = self.expand.kernel_size[0] // 2
            ones = torch.zeros_like(weight)
            ones[..., centre, centre].fill_diagonal_(1.0)
            weight = weight + ones
        if self.expand.bias is None or self.project.bias is None:
            return weight, None
        return weight, mix @ self.expand.bias + self.project.bias

    def folded(self) -> nn.Module:
        """The one convolution, with a bias only where the block has one."""
        made = then_pointwise(self.expand, self.project)
        if self.residual:
            made = plus_identity(made)
        if self.expand.bias is None:
            made.bias = None
        return made


def delta_of(block: LinearBlock) -> Tensor:
    """One picture per input channel, (inside, inside, k, k), with a one at its centre.

    The released code collapses by running the two convolutions on it: what comes out, both axes reversed, is the
    collapsed weight without the identity.
    """
    inside, size = block.expand.in_channels, block.expand.kernel_size[0]
    weight = block.expand.weight
    picture = torch.zeros(inside, inside, size, size, dtype=weight.dtype, device=weight.device)
    picture[..., size // 2, size // 2].fill_diagonal_(1.0)
    return picture
