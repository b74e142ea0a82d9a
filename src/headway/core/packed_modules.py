"""Torch modules that multiply with a `Weight`: `PackedLinear` and `PackedConv1x1`, and which layers they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from headway.core.errors import BadInput
from headway.core.weight import F32, Weight

SiteKind = Literal["linear", "conv1x1"]


def tensor_of(weight: Weight) -> Tensor:
    """The exact value as a float32 tensor (out_features, in_features) of its own, which may be written to."""
    return torch.from_numpy(np.array(weight.dequantize(), np.float32))


class PackedModule(nn.Module):
    """What both share: `packed` is the weight, `bias` a buffer, `kernel_calls` counts the products of its kernel,
    `dtype` is the type of the layer it stands for.

    On a CPU without a gradient through the input, the product is the weight's own kernel. Elsewhere it is torch's,
    with the exact dequantised value, and is not counted.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.packed = weight
        self.dtype = dtype
        self.kernel_calls = 0
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> Tensor:
        """The exact value, made anew at each call: for code that reads a layer's weight instead of calling it."""
        return tensor_of(self.packed)

    def product(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features), bias added, in the data type of `x`."""
        bias = cast("Tensor | None", self.bias)
        if x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            value = tensor_of(self.packed).to(x.device, x.dtype)
            return F.linear(x, value, None if bias is None else bias.to(x.device, x.dtype))
        out_features, in_features = self.packed.shape
        rows = x.detach().reshape(-1, in_features).to(torch.float32).contiguous()
        y = torch.from_numpy(self.packed.matmul(rows.numpy()))
        self.kernel_calls += 1
        if bias is not None:
            y = y.add_(bias)
        return y.reshape(*x.shape[:-1], out_features).to(x.dtype)

    def extra_repr(self) -> str:
        return repr(self.packed)


class PackedLinear(PackedModule):
    """`nn.Linear` over a `Weight`: (..., in_features) -> (..., out_features)."""

    @property
    def in_features(self) -> int:
        return self.packed.shape[1]

    @property
    def out_features(self) -> int:
        return self.packed.shape[0]

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input)


class PackedConv1x1(PackedModule):
    """A 1x1 `nn.Conv2d` (one group, no padding) over a `Weight`: (n, in, h, w) -> (n, out, ceil(h/s), ceil(w/s)).

    The result is channels-last in memory, as the product leaves it.
    """

    kernel_size = (1, 1)
    padding = (0, 0)
    dilation = (1, 1)
    groups = 1

    def __init__(
        self,
        weight: Weight,
        bias: Tensor | None,
        stride: tuple[int, int] = (1, 1),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(weight, bias, dtype)
        self.stride = stride

    @property
    def in_channels(self) -> int:
        return self.packed.shape[1]

    @property
    def out_channels(self) -> int:
        return self.packed.shape[0]

    @property
    def weight(self) -> Tensor:
        return tensor_of(self.packed)[:, :, None, None]

    def forward(self, input: Tensor) -> Tensor:
        picked = input[..., :: self.stride[0], :: self.stride[1]]
        return self.product(picked.movedim(-3, -1)).movedim(-1, -3)


def site_kind(module: nn.Module) -> SiteKind | None:
    """`linear`, `conv1x1`, or None for what a `Weight` cannot stand for.

    A layer that computes anything else (its own `forward`, on the class or on the object, or hooks) is none.
    """
    return None if is_hooked_site(module) else _kind(module)


def is_hooked_site(module: nn.Module) -> bool:
    """Whether a layer would be a site but for its hooks, which its packed form would not call."""
    hooked = bool(module._forward_pre_hooks or module._forward_hooks) and not isinstance(module, PackedModule)
    return hooked and _kind(module) is not None


def _kind(module: nn.Module) -> SiteKind | None:
    if isinstance(module, PackedModule):
        return "conv1x1" if isinstance(module, PackedConv1x1) else "linear"
    if "forward" in vars(module) or not _is_matrix(getattr(module, "weight", None)):
        return None
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return "linear"
    plain = (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid", "same")
    )
    return "conv1x1" if plain else None


def _is_matrix(weight: object) -> bool:
    """Whether a `Weight` can hold it: real numbers, and some of them."""
    return isinstance(weight, Tensor) and not is_lazy(weight) and weight.is_floating_point() and weight.numel() > 0


def matrix_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of a site's module."""
    if isinstance(module, PackedModule):
        return module.packed.shape
    weight = cast(Tensor, module.weight)
    return int(weight.shape[0]), int(weight.shape[1])


def pack(module: nn.Module, weight: Weight, site: str) -> PackedModule:
    """The packed module that stands for a site's `module`; raises `BadInput` when the shapes differ."""
    if tuple(weight.shape) != matrix_shape(module):
        raise BadInput(f"site {site!r} is {matrix_shape(module)}, the weight {tuple(weight.shape)}", "check the site")
    bias = cast("Tensor | None", module.bias)
    dtype = module.dtype if isinstance(module, PackedModule) else cast(Tensor, module.weight).dtype
    if site_kind(module) == "linear":
        return PackedLinear(weight, bias, dtype)
    return PackedConv1x1(weight, bias, cast("tuple[int, int]", tuple(cast(Any, module).stride)), dtype)


def unpack(module: PackedModule) -> nn.Module:
    """The `nn.Linear` or `nn.Conv2d` with the exact dequantised weight, in float32.

    Inside a network of another type it takes and gives that.
    """
    among_others = module.dtype != torch.float32
    bias = cast("Tensor | None", module.bias)
    out_features, in_features = module.packed.shape
    layer: nn.Linear | nn.Conv2d
    # Built as small as can be, since what torch would draw at random is replaced at once.
    if isinstance(module, PackedConv1x1):
        layer = (_Conv1x1 if among_others else nn.Conv2d)(1, 1, 1, module.stride, bias=bias is not None)
        layer.in_channels, layer.out_channels = in_features, out_features
    else:
        layer = (_Linear if among_others else nn.Linear)(1, 1, bias=bias is not None)
        layer.in_features, layer.out_features = in_features, out_features
    layer.weight = nn.Parameter(module.weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(torch.float32))
    return layer.train(module.training)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class _Conv1x1(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class TensorWeight:
    """The float weight a torch layer holds, seen as a `Weight` of form `dense`: no copy is made until it is asked.

    It stores what the form `dense` of `headway.llm.weights` stores, and is read back as that.
    """

    form = "dense"

    def __init__(self, matrix: Tensor) -> None:
        """matrix: (out_features, in_features), float32, float16 or bfloat16."""
        self._matrix = matrix.detach()
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))

    @property
    def nbytes(self) -> int:
        return self._matrix.numel() * self._matrix.element_size()

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self._matrix.element_size()

    def dequantize(self) -> F32:
        value: F32 = self._matrix.to("cpu", torch.float32).contiguous().numpy()
        return value

    def matmul(self, x: F32) -> F32:
        product: F32 = x @ self.dequantize().T
        return product

    def native(self) -> Any:
        from headway.kernels import cpu

        return cast(Any, cpu).pack_dense(self.dequantize())

    def tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        matrix = self._matrix.cpu().contiguous()
        if matrix.dtype == torch.bfloat16:
            return {"values": matrix.view(torch.uint16).numpy()}
        if matrix.dtype == torch.float16:
            return {"values": matrix.numpy()}
        return {"values": self.dequantize()}

    def meta(self) -> Mapping[str, str | int | float]:
        return {"dtype": {torch.bfloat16: "bf16", torch.float16: "f16"}.get(self._matrix.dtype, "f32")}
