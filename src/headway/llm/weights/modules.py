"""Torch modules that hold a `Weight`, and the copy of a module with some of its layers replaced by them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.model import Site
from headway.core.weight import F32, Weight


def tensor_of(weight: Weight) -> Tensor:
    """The exact value as a float32 tensor that may be written to."""
    value = weight.dequantize()
    return torch.from_numpy(value if value.flags.writeable else value.copy())


class _Packed(nn.Module):
    """Holds a `Weight`; its dense value is made only where a gradient or another device needs it."""

    def __init__(self, weight: Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = weight
        self.register_buffer("bias", None if bias is None else bias.detach())

    def dense(self, like: Tensor) -> Tensor:
        """The exact value on the device of `like`, in its data type."""
        return tensor_of(self.packed).to(like.device, like.dtype)

    def product(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features), bias added."""
        bias = cast("Tensor | None", self.bias)
        if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, self.dense(x), None if bias is None else bias.to(x.dtype))
        rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32).contiguous()
        y = torch.from_numpy(self.packed.matmul(rows.numpy())).reshape(*x.shape[:-1], self.packed.shape[0])
        if bias is not None:
            y = y + bias
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return repr(self.packed)


class PackedLinear(_Packed):
    """`nn.Linear` over a `Weight`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class PackedConv1x1(_Packed):
    """A 1x1 `nn.Conv2d` (one group, no padding) over a `Weight`: (n, in, h, w) -> (n, out, ceil(h/s), ceil(w/s))."""

    def __init__(self, weight: Weight, bias: Tensor | None, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__(weight, bias)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :: self.stride[0], :: self.stride[1]]
        return self.product(x.movedim(-3, -1)).movedim(-1, -3)


class PackedEmbedding(_Packed):
    """`nn.Embedding` over a `Weight`: rows are dequantised as they are read."""

    def __init__(self, weight: Weight) -> None:
        super().__init__(weight, None)

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1).cpu().numpy()
        rows = getattr(self.packed, "rows", None)
        values = rows(flat) if rows is not None else self.packed.dequantize()[flat]
        return torch.from_numpy(np.array(values)).to(ids.device).reshape(*ids.shape, self.packed.shape[1])


def is_conv1x1(module: nn.Module) -> bool:
    """Whether a module is a convolution that is a linear layer applied to every pixel."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid")
    )


def linear_sites(module: nn.Module) -> Iterator[tuple[Site, nn.Module]]:
    """The linear and 1x1-convolution layers of any module, in registration order (that of most forwards)."""
    for name, child in module.named_modules():
        if isinstance(child, _Packed) and not isinstance(child, PackedEmbedding):
            out_features, in_features = child.packed.shape
            kind = "conv1x1" if isinstance(child, PackedConv1x1) else "linear"
            yield Site(name, out_features, in_features, "conv1x1" if kind == "conv1x1" else "linear"), child
        elif isinstance(child, nn.Linear):
            yield Site(name, child.out_features, child.in_features, "linear"), child
        elif is_conv1x1(child):
            conv = cast(nn.Conv2d, child)
            yield Site(name, conv.out_channels, conv.in_channels, "conv1x1"), child


def matrix_of(module: nn.Module) -> F32:
    """The float32 matrix (out_features, in_features) of a site's module."""
    if isinstance(module, _Packed):
        return module.packed.dequantize()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise BadInput(f"{type(module).__name__} holds no weight", "name a linear, 1x1 convolution or embedding layer")
    return np.ascontiguousarray(weight.detach().to(torch.float32).cpu().reshape(weight.shape[0], -1).numpy())


def packed(module: nn.Module, weight: Weight) -> nn.Module:
    """The packed module that stands for `module` with that weight."""
    out, inside = matrix_shape(module)
    if weight.shape != (out, inside):
        raise BadInput(
            f"a weight of {weight.shape} does not fit {type(module).__name__} {(out, inside)}", "check the site"
        )
    bias = cast("Tensor | None", getattr(module, "bias", None))
    if isinstance(module, (nn.Embedding, PackedEmbedding)):
        return PackedEmbedding(weight)
    if isinstance(module, PackedConv1x1):
        return PackedConv1x1(weight, bias, module.stride)
    if is_conv1x1(module):
        return PackedConv1x1(weight, bias, cast(Any, module.stride))
    return PackedLinear(weight, bias)


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of a site's module."""
    if isinstance(module, _Packed):
        return module.packed.shape
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise BadInput(f"{type(module).__name__} holds no weight", "name a linear, 1x1 convolution or embedding layer")
    return int(weight.shape[0]), int(weight.numel() // weight.shape[0])


def with_packed(module: nn.Module, weights: Mapping[str, Weight]) -> nn.Module:
    """A copy of `module` whose named sites hold those weights; everything else is shared with the original."""
    sites = {name: module.get_submodule(name) for name in weights}
    replaced = {id(site): packed(site, weights[name]) for name, site in sites.items()}
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, {**shared, **replaced})
