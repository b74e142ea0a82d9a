"""`count`: how many values a network holds, and how many multiply-adds it spends on a sample.

Convolutions, linear layers and the products of attention are counted apart; norms, activations, gates and pooling,
which papers leave out, are not counted. Modules are run, not read: what the sample does not reach costs nothing.

Attention multiplies activations by activations, which no layer shows. A module that does so has a method

    attention_macs(self, *inputs: Tensor) -> int

It is asked at each call, with the inputs of `forward`, for the multiply-adds of its products (queries by keys, and
weights by values) over the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from headway.core.module_tree import copy_tree

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Counts:
    """Of one network on one sample."""

    trainable: int
    """Parameters that take gradients."""
    stored: int
    """Values that a file of weights holds: parameters and saved buffers of floats, each once."""
    conv_macs: int
    linear_macs: int
    attention_macs: int

    @property
    def layer_macs(self) -> int:
        """Convolutions and linear layers: what most papers and tools print."""
        return self.conv_macs + self.linear_macs

    @property
    def macs(self) -> int:
        return self.layer_macs + self.attention_macs


def parameters(module: nn.Module) -> int:
    """Trainable values, those that several modules share counted once."""
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


def stored(module: nn.Module) -> int:
    """Values of floats that a file of weights holds, each once."""
    state = module.state_dict(keep_vars=True).values()
    return sum(value.numel() for value in {id(value): value for value in state}.values() if value.is_floating_point())


def count(module: nn.Module, sample: Any) -> Counts:
    """Run a copy of `module`, in `eval`, on a sample: a tensor or a tuple of arguments.

    Multiply-adds are those of the whole sample, so give a batch of one.
    """
    found = {"conv": 0, "linear": 0, "attention": 0}

    def add(child: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(child, _CONVOLUTIONS):
            found["conv"] += output.numel() * child.weight[0].numel()
        elif isinstance(child, _TRANSPOSED):
            found["conv"] += inputs[0].numel() * child.weight[0].numel()
        elif isinstance(child, nn.Linear):
            found["linear"] += output.numel() * child.in_features
        if hasattr(child, "attention_macs"):
            found["attention"] += cast(Any, child).attention_macs(*inputs)

    # A copy, so that hooks, modes and running statistics of the caller's module stay as they are.
    copy = copy_tree(module, clone_buffers=True).eval()
    for child in copy.modules():
        child.register_forward_hook(add)
    with torch.no_grad():
        copy(*((sample,) if isinstance(sample, Tensor) else sample))
    return Counts(parameters(module), stored(module), found["conv"], found["linear"], found["attention"])
