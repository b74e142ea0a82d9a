"""The native path of `efficientnet_lite.py`: the same network, made from the modules that hold its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headway.core.packed_modules import PackedModule, TensorWeight


class NativeConvNet:
    """`EfficientNetLite.forward` in one call, channels-last; batch norm follows each product as scale and shift."""

    def __init__(self, network: Any) -> None:
        """network: a `headway.vision.efficientnet_lite.EfficientNetLite` of float32 tensors, in `eval`."""
        import headway.kernels.cpu._cpu as _cpu

        self._packed = [child for child in network.modules() if isinstance(child, PackedModule)]
        last = network.classifier
        channels = network.stem.conv.in_channels
        self._native = cast(Any, _cpu).make_conv_net(
            channels, list(describe(network)), _weight(last), _values(last.bias)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x: (n, 3, h, w) float32 -> (n, classes) logits."""
        logits = self._native.run(x.contiguous().numpy())
        for site in self._packed:
            site.kernel_calls += 1
        return torch.from_numpy(logits)


def describe(network: Any) -> Iterator[dict[str, Any]]:
    """The steps of the native net, in order."""
    yield _step("stem", network.stem)
    for block in network.blocks:
        steps = [("pointwise", part) for part in (block.expand,) if not isinstance(part, nn.Identity)]
        steps += [("depthwise", block.depthwise), ("pointwise", block.project)]
        for index, (kind, part) in enumerate(steps):
            begins, adds = index == 0, index == len(steps) - 1
            yield _step(kind, part, begins=block.residual and begins, adds=block.residual and adds)
    yield _step("pointwise", network.head)


def _step(kind: str, part: Any, *, begins: bool = False, adds: bool = False) -> dict[str, Any]:
    """part: a `ConvNorm`."""
    scale, shift = _norm(part.norm)
    weights: dict[str, Any] = {"scale": scale}
    if kind == "pointwise":
        weights["weight"] = _weight(part.conv)
    else:
        taps = part.conv.weight.detach().flatten(1).T.double().numpy() * scale.astype(np.float64)
        weights = {"taps": np.ascontiguousarray(taps, np.float32)}
    kernel, stride = part.conv.kernel_size[0], part.conv.stride[0]
    relu6 = isinstance(part.act, nn.ReLU6)
    return {
        "kind": kind,
        "kernel": kernel,
        "stride": stride,
        "relu6": relu6,
        "begins": begins,
        "adds": adds,
        "shift": shift,
        **weights,
    }


def _norm(norm: nn.BatchNorm2d) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scale and shift of a batch norm in `eval`."""
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = norm.weight.detach().double() / (variance + norm.eps).sqrt()
    shift = norm.bias.detach().double() - mean * scale
    return scale.float().numpy(), shift.float().numpy()


def _weight(layer: Any) -> Any:
    """The packed weight of a convolution or a linear layer, its taps flattened."""
    return (layer.packed if isinstance(layer, PackedModule) else TensorWeight(layer.weight.flatten(1))).native()


def _values(tensor: Tensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = tensor.detach().contiguous().numpy()
    return values
