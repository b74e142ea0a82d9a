"""`fold`: a network rewritten for inference, with fewer operations and the same outputs.

Two ways lead into it, and both are exact up to rounding:

- a module that knows a shorter form of itself has a method `folded(self) -> nn.Module | None`. It is called once its
  children are in their short form, on a copy in `eval`; None keeps the module as it is.
- given a sample, `fold` also finds the norms of any other network that stand directly behind a convolution or linear
  layer, or directly before a linear layer or 1x1 convolution, by running it.

The rules below are what `folded` methods are made of. All are linear algebra on one layer `y = W x + b`:

    then_affine      s * y + t            a batch norm or layer scale behind the layer
    affine_then      W (s * x + t) + b    a norm before it (a convolution only if 1x1, without padding)
    then_pointwise   V y + c              a linear layer or 1x1 convolution behind it
    plus_identity    y + x                the residual around a convolution that keeps its shape
    joined           [y1, y2]             layers that read the same input, as one
    averaged         (y1 + y2) / 2        two heads, as one

They work in float64 and give layers of the first one's type, with a bias.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from headway.core.errors import BadInput
from headway.core.module_workload import tensors_in

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer: TypeAlias = nn.Linear | Convolution
L = TypeVar("L", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


# ---- the pass -------------------------------------------------------------------------------------------------------


def fold(module: nn.Module, sample: Any = None) -> nn.Module:
    """A copy in `eval` for inference; `module` itself stays as it is.

    sample: a tensor or a tuple of arguments; with it, norms are folded that no `folded` method knows of.
    """
    made = _folded(copy.deepcopy(module).eval(), {})
    if sample is not None:
        _fold_norms(made, (sample,) if isinstance(sample, Tensor) else tuple(sample))
    return made.requires_grad_(False)


def _folded(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """Children first; a module in two places is folded once."""
    if module not in done:
        for name, child in module._modules.items():  # `named_children` would skip the second of two equal ones
            if child is not None:
                module._modules[name] = _folded(child, done)
        own = getattr(module, "folded", None)
        with torch.no_grad():
            short = own() if own is not None else None
        done[module] = module if short is None else short.eval()
    return done[module]


class _Uses(TorchFunctionMode):
    """How many operations read each tensor while a network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[int, int] = {}
        self.alive: list[Any] = []
        """Identities are good only while the tensors live."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):  # a look at a shape reads no values
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self.count[id(leaf)] = self.count.get(id(leaf), 0) + 1
                    self.alive.append(leaf)
            self.alive.append(output)
        return output


def _fold_norms(module: nn.Module, sample: tuple[Any, ...]) -> None:
    """Fold each batch norm into the layer before it, else into the one behind it, where nothing else sees between."""
    uses = _Uses()
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    hooks = [
        child.register_forward_hook(lambda m, given, output: calls.setdefault(m, []).append((given[0], output)))
        for child in module.modules()
        if isinstance(child, (nn.Linear, *_CONVOLUTIONS, *_NORMS))
    ]
    try:
        with torch.no_grad(), uses:
            output = module(*sample)
    finally:
        for hook in hooks:
            hook.remove()
    for tensor in tensors_in(output):
        uses.count[id(tensor)] = uses.count.get(id(tensor), 0) + 1
    once = {child: seen[0] for child, seen in calls.items() if len(seen) == 1}
    makers = {id(output): child for child, (_, output) in once.items()}
    readers = {id(given): child for child, (given, _) in once.items()}
    replace: dict[nn.Module, nn.Module] = {}
    for norm, (given, output) in once.items():
        if not isinstance(norm, _NORMS) or norm.running_mean is None:
            continue
        rest = _activation(norm)
        before, behind = makers.get(id(given)), readers.get(id(output))
        scale, shift = scale_shift(norm)
        if isinstance(before, (nn.Linear, *_CONVOLUTIONS)) and uses.count[id(given)] == 1 and rest is not None:
            replace[before] = then_affine(cast(Any, replace.get(before, before)), scale, shift)
            replace[norm] = rest
        elif isinstance(rest, nn.Identity) and uses.count.get(id(output)) == 1 and _is_pointwise(behind):
            replace[cast(nn.Module, behind)] = affine_then(cast(Any, replace.get(behind, behind)), scale, shift)
            replace[norm] = rest
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in replace:
                parent._modules[name] = replace[child]


def _activation(norm: nn.Module) -> nn.Module | None:
    """What is left of a norm once it is folded: nothing, or the activation that timm's norms hold; None: unknown."""
    if type(norm) in _NORMS:
        return nn.Identity()
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    return nn.Sequential(*parts) if all(isinstance(part, nn.Module) for part in parts) else None


def _is_pointwise(layer: Any) -> bool:
    if isinstance(layer, _CONVOLUTIONS):
        return set(layer.kernel_size) == {1} and set(_pairs(layer.padding)) == {0} and layer.groups == 1
    return isinstance(layer, nn.Linear)


# ---- rules ----------------------------------------------------------------------------------------------------------


def scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm does in `eval`, per channel: `scale * x + shift`, float64.

    Raises `BadInput` for one that keeps no running statistics.
    """
    held = cast(nn.BatchNorm2d, norm)
    if held.running_mean is None or held.running_var is None:
        raise BadInput("a batch norm without running statistics cannot be folded", "leave it, or train with them")
    weight = torch.ones_like(held.running_var) if held.weight is None else held.weight
    bias = torch.zeros_like(held.running_mean) if held.bias is None else held.bias
    scale = weight.double() / torch.sqrt(held.running_var.double() + held.eps)
    return scale, bias.double() - held.running_mean.double() * scale


def then_affine(layer: L, scale: Tensor, shift: Tensor | float = 0.0) -> L:
    """`scale * layer(x) + shift`; scale and shift per output channel."""
    scale = scale.double()
    return with_values(layer, layer.weight.double() * _rows(scale, layer), bias_of(layer) * scale + shift)


def affine_then(layer: L, scale: Tensor, shift: Tensor) -> L:
    """`layer(scale * x + shift)`; scale and shift per input channel.

    Raises `BadInput` for a convolution that is not 1x1 without padding and groups: its border pixels see no shift.
    """
    if not _is_pointwise(layer):
        raise BadInput(f"a norm cannot be folded into a {type(layer).__name__} behind it", "only 1x1, without padding")
    weight = layer.weight.double()
    wide = (1, -1, *[1] * (weight.dim() - 2))
    bias = bias_of(layer) + weight.flatten(1) @ shift.double()
    return with_values(layer, weight * scale.double().reshape(wide), bias)


def then_pointwise(layer: L, pointwise: Layer) -> L:
    """`pointwise(layer(x))` as one layer like the first; the second is linear or 1x1, without padding and groups."""
    if not _is_pointwise(pointwise) or getattr(layer, "groups", 1) != 1:
        raise BadInput(f"{type(pointwise).__name__} is no 1x1 layer that can be merged", "keep both layers")
    mix = pointwise.weight.double().flatten(1)
    weight = torch.tensordot(mix, layer.weight.double(), dims=1)
    return with_values(layer, weight, mix @ bias_of(layer) + bias_of(pointwise))


def plus_identity(conv: L) -> L:
    """`conv(x) + x`, for a convolution that keeps channels and size: 1 is added to each channel's centre tap."""
    if not isinstance(conv, _CONVOLUTIONS) or not keeps_shape(conv):
        raise BadInput(f"{type(conv).__name__} changes the shape of its input", "keep the residual as an addition")
    weight = conv.weight.double().clone()
    centre = tuple(size // 2 for size in conv.kernel_size)
    inside = weight.shape[1]
    for channel in range(conv.out_channels):
        weight[(channel, channel % inside, *centre)] += 1.0
    return with_values(conv, weight, bias_of(conv))


def keeps_shape(conv: Convolution) -> bool:
    """Whether its output has the channels and the size of its input, pixel over pixel."""
    if isinstance(conv.padding, str) or conv.in_channels != conv.out_channels or conv.padding_mode != "zeros":
        return False
    sizes = zip(conv.kernel_size, conv.padding, conv.dilation, strict=True)
    return set(conv.stride) == {1} and all(k % 2 == 1 and p == d * (k // 2) for k, p, d in sizes)


def joined(layers: Sequence[L]) -> L:
    """One layer whose outputs are those of all, in order; they read the same input in the same way."""
    weight = torch.cat([layer.weight.double() for layer in layers])
    return with_values(layers[0], weight, torch.cat([bias_of(layer) for layer in layers]))


def averaged(first: L, second: L) -> L:
    """The mean of two layers' outputs."""
    return with_values(first, (first.weight.double() + second.weight.double()) / 2, _mean_bias(first, second))


def _mean_bias(first: Layer, second: Layer) -> Tensor:
    return (bias_of(first) + bias_of(second)) / 2


def bias_of(layer: Layer) -> Tensor:
    """float64, zeros where the layer has none."""
    weight = layer.weight
    return weight.new_zeros(weight.shape[0], dtype=torch.float64) if layer.bias is None else layer.bias.double()


def with_values(layer: L, weight: Tensor, bias: Tensor) -> L:
    """A layer like this one with other values; the number of outputs, or of inputs, may differ."""
    if isinstance(layer, nn.Linear):
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    else:
        made = type(layer)(
            weight.shape[1] * layer.groups, weight.shape[0], cast(Any, layer.kernel_size), cast(Any, layer.stride),
            cast(Any, layer.padding), cast(Any, layer.dilation), layer.groups, padding_mode=layer.padding_mode,
            device="meta",
        )  # fmt: skip
    made.weight = nn.Parameter(weight.to(layer.weight.dtype).contiguous(), False)
    made.bias = nn.Parameter(bias.to(layer.weight.dtype).contiguous(), False)
    return cast(L, made.eval())


def _rows(scale: Tensor, layer: Layer) -> Tensor:
    return scale.reshape(-1, *[1] * (layer.weight.dim() - 1))


def _pairs(padding: Any) -> tuple[Any, ...]:
    return (padding,) if isinstance(padding, str) else tuple(padding)


# ---- the test -------------------------------------------------------------------------------------------------------


def randomise_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm, and every parameter of one axis that is no bias, values at which a wrong fold shows; in place.

    A fresh network has means of 0 and variances of 1, with which many mistakes are invisible.
    """
    random = torch.Generator().manual_seed(seed)

    def fill(values: Tensor | None, low: float, high: float) -> None:
        if values is not None:
            values.copy_(low + (high - low) * torch.rand(values.shape, generator=random))

    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, (*_NORMS, nn.LayerNorm, nn.GroupNorm)):
                fill(child.weight, 0.5, 1.5)
                fill(child.bias, -0.5, 0.5)
                fill(getattr(child, "running_mean", None), -0.5, 0.5)
                fill(getattr(child, "running_var", None), 0.5, 2.0)
            else:
                for name, values in child.named_parameters(recurse=False):
                    if name.endswith("bias"):
                        fill(values, -0.1, 0.1)
                    elif values.dim() == 1:
                        fill(values, 0.2, 1.0)
    return module


def relative_error(reference: Tensor, other: Tensor) -> float:
    """max |other - reference| / max |reference|."""
    exact = reference.detach().double()
    return float((other.detach().double() - exact).abs().max() / exact.abs().max())
