"""`Step`: what the native side does with registers (`kernels/cpu/image_net.h`), without any weights.

A step's numbers are expressions over the module's parameters and buffers, so that one program serves every set of
weights of the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""Parameters and buffers of a module by path."""
Number = Callable[[State], Tensor]
"""A tensor made of a module's parameters and buffers."""


@dataclass
class Affine:
    """What follows a product, channel by channel: y = x * scale + shift, collected operation by operation."""

    channels: int
    parts: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def bias(self, value: Number) -> None:
        self.parts.append(("bias", (value,)))

    def scale(self, value: Number) -> None:
        self.parts.append(("scale", (value,)))

    def norm(self, weight: Number | None, bias: Number | None, mean: Number, variance: Number, eps: float) -> None:
        """Batch norm in `eval`."""
        self.parts.append(("norm", (weight, bias, mean, variance, eps)))

    def values(self, state: State) -> tuple[Tensor, Tensor]:
        """(scale, shift), float64 of `channels` values."""
        scale = torch.ones(self.channels, dtype=torch.float64)
        shift = torch.zeros(self.channels, dtype=torch.float64)
        for kind, given in self.parts:
            if kind == "bias":
                shift = shift + given[0](state).double().reshape(-1)
            elif kind == "scale":
                factor = given[0](state).double().reshape(-1)
                scale, shift = scale * factor, shift * factor
            else:
                weight, bias, mean, variance, eps = given
                factor = 1.0 / (variance(state).double() + eps).sqrt()
                if weight is not None:
                    factor = factor * weight(state).double()
                scale, shift = scale * factor, (shift - mean(state).double()) * factor
                if bias is not None:
                    shift = shift + bias(state).double()
        return scale, shift


_OPERANDS = ("residual", "times")


@dataclass
class Step:
    """One step: `kind`, registers and plain settings as the native side names them; `affine` and `numbers` to fill in.

    site: path of the layer whose `Weight` it multiplies. taps: weight of a convolution, (out, in, k, k) or
    (channels, 1, k, k).
    """

    kind: str
    source: list[int]
    to: int
    settings: dict[str, Any] = field(default_factory=dict)
    affine: Affine | None = None
    site: str = ""
    taps: Number | None = None
    numbers: dict[str, Number] = field(default_factory=dict)
    adds_itself: bool = False
    """A depthwise convolution of stride 1 that is added to its own input: one tap more."""

    def reads(self) -> list[int]:
        return [*self.source, *(self.settings[name] for name in _OPERANDS if name in self.settings)]

    def renumbered(self, register: Mapping[int, int]) -> Self:
        operands = {name: register[self.settings[name]] for name in _OPERANDS if name in self.settings}
        source = [register[each] for each in self.source]
        return replace(self, source=source, to=register[self.to], settings={**self.settings, **operands})
