"""`Cut`: what makes a network smaller than its origin builds it: channels of layers, and blocks that are left out.

It holds sizes alone. Which channels were kept shows in the values, so that a saved network is built again from its
origin, resized, and filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.module_tree import copy_tree

RESIZED = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
"""Layers whose channels can be cut: those of torch, and what is derived from them."""


@dataclass(frozen=True)
class Cut:
    """`widths`: path of a layer -> channels that come in and go out. `left_out`: blocks that give what they are given.

    A norm and a depthwise convolution have as many channels in as out.
    """

    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.widths or self.left_out)

    def as_json(self) -> dict[str, Any]:
        return {"widths": {path: list(sizes) for path, sizes in self.widths.items()}, "left_out": list(self.left_out)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cut:
        """Of `as_json`; raises `ValueError` for what is none."""
        widths = {str(path): tuple(sizes) for path, sizes in value["widths"].items()}
        if not all(len(sizes) == 2 and all(type(n) is int and n > 0 for n in sizes) for sizes in widths.values()):
            raise ValueError("widths are pairs of positive numbers")
        return cls(cast("dict[str, tuple[int, int]]", widths), tuple(str(path) for path in value["left_out"]))

    def then(self, other: Cut) -> Cut:
        """Both, as one: this first."""
        left_out = (*self.left_out, *other.left_out)
        widths = {**self.widths, **other.widths}
        return Cut({path: sizes for path, sizes in widths.items() if not beneath(path, left_out)}, left_out)

    def of(self, network: nn.Module) -> nn.Module:
        """A copy of `network` of these sizes that shares what stays; values of resized layers are yet to be filled in.

        Raises `BadInput` for a network that has no such layers.
        """
        mend = "bring the network this model was made from"
        try:
            replace = {path: resized(network.get_submodule(path), *sizes) for path, sizes in self.widths.items()}
            for path in self.left_out:
                network.get_submodule(path)
        except AttributeError as error:
            raise BadInput(f"the network does not fit: {error}", mend) from None
        except ValueError as error:
            raise BadInput(f"the network does not fit: {error}", mend) from None
        return copy_tree(network, {**replace, **{path: nn.Identity() for path in self.left_out}})


def beneath(path: str, folders: Sequence[str]) -> bool:
    """Whether a module stands in one of those, or is one."""
    return any(path == folder or path.startswith(f"{folder}.") for folder in folders)


def resized(layer: nn.Module, inside: int, out: int) -> nn.Module:
    """A layer like this one of another size, its values on the meta device; raises `ValueError` for a larger one."""
    made = copy_tree(layer)
    if isinstance(made, nn.Conv2d):
        depthwise = made.groups > 1
        old = (made.in_channels, made.out_channels)
        if depthwise and not (made.groups == made.in_channels == made.out_channels and inside == out):
            raise ValueError(f"{type(layer).__name__} has groups of channels")
        made.in_channels, made.out_channels, made.groups = inside, out, inside if depthwise else 1
        shape = (out, 1 if depthwise else inside, *made.weight.shape[2:])
    elif isinstance(made, nn.Linear):
        old = (made.in_features, made.out_features)
        made.in_features, made.out_features, shape = inside, out, (out, inside)
    elif isinstance(made, nn.BatchNorm1d | nn.BatchNorm2d):
        old = (made.num_features, made.num_features)
        made.num_features, shape = out, (out,)
    else:
        raise ValueError(f"{type(layer).__name__} has no channels that can be cut")
    if inside > old[0] or out > old[1]:
        raise ValueError(f"{type(layer).__name__} has {old[0]} and {old[1]} channels, not {inside} and {out}")
    for name, held in (*made.named_parameters(recurse=False), *made.named_buffers(recurse=False)):
        if held.dim():  # not a counter
            size = shape if name == "weight" else (out,)
            setattr(made, name, _empty(held, size))
    return made


def _empty(held: Tensor, size: Sequence[int]) -> Tensor:
    value = torch.empty(tuple(size), dtype=held.dtype, device="meta")
    return nn.Parameter(value, held.requires_grad) if isinstance(held, nn.Parameter) else value
