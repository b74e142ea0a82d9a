"""`Chain`: a convolution or a linear layer, and what can be joined to it on the way to the next one."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from headway.vision.runtime.capture import Node, NotNative
from headway.vision.runtime.registers import Registers
from headway.vision.runtime.steps import Affine, Number, State, Step
from headway.vision.runtime.values import (
    SAME,
    Apart,
    Axes,
    Held,
    Known,
    Padded,
    Stacked,
    Tiled,
    argument,
    image,
    spread_over,
)

_CLAMPS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
_ACTS = {"gelu": "gelu", "silu": "silu", "hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid", "sigmoid": "sigmoid"}


class Chain:
    """A product and what can be joined to it: each operation is the only user of the one before."""

    def __init__(self, lowering: Registers, node: Node, alone: bool = False) -> None:
        """alone: nothing is joined."""
        self.node = node
        self.nodes = [node]
        self.weight = lowering.known(node.args[1])
        self.over = lowering.values.get(node.args[0])
        self.stacked = False
        self.slope: Number | None = None
        self.shape = node.args[1].shape
        self.linear = node.name == "linear"
        bias = argument(node, 2, "bias")
        self.affine = Affine(int(self.shape[0]))
        if bias is not None:
            self.affine.bias(lowering.known(bias))
        self.settings: dict[str, Any] = {}
        self.residual: Node | None = None
        self.times: Node | None = None
        self.adds_itself = False
        if self.linear:
            self.kernel, self.stride, self.pads, self.groups = 1, 1, (0, 0, 0, 0), 1
        else:
            self._convolution()
        self.product = self.linear or (self.kernel == 1 and self.groups == 1)
        if not alone:
            self._follow(lowering)

    def _convolution(self) -> None:
        node, shape = self.node, self.shape
        stride, dilation = (_pair(argument(node, at, name, 1)) for at, name in ((3, "stride"), (5, "dilation")))
        padding = argument(node, 4, "padding", 0)
        self.groups = int(argument(node, 6, "groups", 1))
        # A row of stacked pixels, all of them: a product.
        self.stacked = isinstance(self.over, Stacked) and shape[2] == 1 and self.groups == 1 and padding in (0, (0, 0))
        if self.stacked:
            self.kernel, self.stride, self.pads = 1, 1, (0, 0, 0, 0)
            return
        if isinstance(padding, str) or len(set(stride)) > 1 or set(dilation) != {1} or shape[2] != shape[3]:
            raise NotNative("a convolution that is not square, or dilated")
        vertical, horizontal = _pair(padding)
        self.kernel, self.stride = int(shape[2]), int(stride[0])
        self.pads = (horizontal, horizontal, vertical, vertical)
        if self.groups > 1 and not (shape[1] == 1 and shape[0] == self.groups):
            raise NotNative("a convolution in groups")
        if self.groups > 1 and (self.kernel not in (2, 3, 5, 7) or self.stride > 2):
            raise NotNative(f"a depthwise convolution of {self.kernel} by {self.kernel}")

    def _follow(self, lowering: Registers) -> None:
        last, acted = self.node, False
        while len(last.users) == 1:
            user = next(iter(last.users))
            if user in lowering.joined:  # by the product on the other side of a sum
                return
            name = user.name
            act = activation(user)
            plain = not acted and self.residual is None
            if name in SAME:
                pass
            elif name == "batch_norm" and plain and user.args[0] is last:
                join_norm(self.affine, user, lowering)
            elif act is not None and not acted and user.args[0] is last:
                self.settings |= act
                acted = True
            elif name == "prelu" and not acted and user.args[0] is last:
                self.slope = spread_over(self.affine.channels, lowering.known(user.args[1]))
                self.settings["act"] = "prelu"
                acted = True
            elif name == "unflatten" and (repeated := _repeats(user)) is not None:
                self.times = repeated[0]
                self.nodes += [user, *repeated[1:]]
                return
            elif name in ("mul", "add") and self._joins(lowering, user, last, plain):
                acted = acted or self.times is not None
            else:
                return
            last = user
            self.nodes.append(user)
            if self.times is not None:
                return

    def _joins(self, lowering: Registers, user: Node, last: Node, plain: bool) -> bool:
        if len(user.args) < 2 or user.kwargs.get("alpha", 1) != 1:
            return False
        other = user.args[1] if user.args[0] is last else user.args[0]
        adds = user.name == "add"
        if other is last:
            return False
        value = lowering.values.get(other) if isinstance(other, Node) else other
        if isinstance(value, Known) and plain:
            # Layer scale: one value a channel, along the axis where a convolution or a linear layer has them.
            shape, ndim = value.shape, user.ndim
            padded = (1,) * (ndim - len(shape)) + tuple(shape)
            channel = ndim - 1 if self.linear else 1
            if any(size != 1 for axis, size in enumerate(padded) if axis != channel):
                return False
            self.affine.bias(value.number) if adds else self.affine.scale(value.number)
            return True
        if isinstance(value, (int, float)) and plain and not adds:
            constant = torch.full((1,), float(value))
            self.affine.scale(lambda state: constant)
            return True
        if not isinstance(other, Node):
            return False
        if adds and self.groups > 1:
            itself = other is self.node.args[0] and self.stride == 1 and self.kernel % 2 == 1 and plain
            centred = set(self.pads) == {self.kernel // 2}
            self.adds_itself = itself and centred and not isinstance(value, Padded)
            return self.adds_itself
        if not self.product or isinstance(value, Padded) or last.shape != user.shape:
            return False
        if adds and plain and other.shape == user.shape:
            self.residual = other
            return True
        if not adds and self.times is None and self.residual is None and isinstance(value, (Held, Tiled)):
            self.times = other
            return True
        return False

    def emit(self, lowering: Registers) -> Held:
        value = lowering.values[self.node.args[0]]
        if isinstance(value, Stacked):
            value = self._joined(lowering, value)
        pads = self.pads
        if isinstance(value, Padded):
            pads = cast(Any, tuple(a + b for a, b in zip(pads, value.pads, strict=True)))
            value = value.inner
        wanted = self.node.args[0].ndim - 1 if self.linear else 1
        x = lowering.bring(value, wanted) if isinstance(value, Apart) else lowering.held(value)
        axes = lowering.axes(x)
        ndim = x.view.ndim
        if lowering.channel(x, axes) != wanted or (not self.linear and ndim != 4):
            raise NotNative("a product along an axis that is not the channels")
        register, axes = lowering.whole(x)
        height, width, channels = lowering.registers[register]
        if not self.linear:
            # An image as it stands in its register, not tokens that were given an image's shape.
            if (x.view.shape[2], x.view.shape[3]) != (height, width):
                height, width, register = self._reshaped(lowering, x, register, channels)
            left, right, top, bottom = pads
            if max(pads) >= self.kernel > 1 or (self.kernel == 1 and max(pads) > 0):
                raise NotNative("padding as wide as the kernel")
            out_h = (height + top + bottom - self.kernel) // self.stride + 1
            out_w = (width + left + right - self.kernel) // self.stride + 1
        else:
            out_h, out_w, left, top = height, width, 0, 0
        out = self.affine.channels
        if self.product and self.stride > 1:
            to = lowering.register(out_h, out_w, channels)
            lowering.steps.append(Step("pick", [register], to, {"stride": self.stride}))
            register = to
        settings = dict(self.settings)
        residual, times = self._operands(lowering, x, axes, out, (out_h, out_w))
        settings |= {} if residual is None else {"residual": residual}
        settings |= {} if times is None else {"times": times}
        if self.product or self.groups > 1:
            register = lowering.padded(register)
        to = lowering.register(out_h, out_w, out)
        numbers: dict[str, Number] = {} if self.slope is None else {"slope": self.slope}
        if self.product:
            site = "" if self.stacked else self._site()
            numbers |= {"matrix": self._matrix} if self.stacked else {}
            lowering.steps.append(Step("product", [register], to, settings, self.affine, site=site, numbers=numbers))
        else:
            settings |= {"kernel": self.kernel, "stride": self.stride, "top": top, "left": left}
            kind = "window" if self.groups == 1 else "depthwise"
            lowering.steps.append(
                Step(
                    kind,
                    [register],
                    to,
                    settings,
                    self.affine,
                    taps=self.weight,
                    numbers=numbers,
                    adds_itself=self.adds_itself,
                )
            )
        if self.linear:
            return lowering.like(x, axes, to, out)
        return Held(to, image(out, out_h, out_w, lowering.ld(to)))

    def _joined(self, lowering: Registers, stacked: Stacked) -> Held:
        """Columns of single pixels as channels of one, part after part, for a kernel as wide as there are parts."""
        sources = [lowering.whole(part)[0] for part in stacked.parts]
        channels = self.shape[1] * len(sources)
        if tuple(self.shape[2:]) != (1, len(sources)) or any(
            lowering.registers[source] != (1, 1, self.shape[1]) for source in sources
        ):
            raise NotNative("a convolution of stacked images")
        to = lowering.register(1, 1, channels)
        lowering.steps.append(Step("join", sources, to))
        return Held(to, image(channels, 1, 1, lowering.ld(to)))

    @staticmethod
    def _reshaped(lowering: Registers, x: Held, register: int, channels: int) -> tuple[int, int, int]:
        """The same rows as an image of the view's height and width."""
        height, width = x.view.shape[2], x.view.shape[3]
        to = lowering.register(height, width, channels)
        lowering.steps.append(Step("take", [register], to, {"begin": 0}))
        return height, width, to

    def _operands(
        self, lowering: Registers, x: Held, axes: Axes, out: int, size: tuple[int, int]
    ) -> tuple[int | None, int | None]:
        """Registers of the residual and the factor."""
        found: list[int | None] = []
        for node in (self.residual, self.times):
            if node is None:
                found.append(None)
                continue
            value = lowering.values[node]
            wanted = node.ndim - 1 if self.linear else 1
            if isinstance(value, Apart):
                value = lowering.bring(value, wanted)
            held = value.inner if isinstance(value, Tiled) else lowering.held(value)
            register, theirs = lowering.whole(held)
            if lowering.channel(held, theirs) != wanted:
                raise NotNative("operands that lie differently")
            if node is self.residual and lowering.registers[register] != (*size, out):
                if math.prod(lowering.registers[register][:2]) != math.prod(size):
                    raise NotNative("operands of different sizes")
                to = lowering.register(*size, out)
                lowering.steps.append(Step("take", [register], to, {"begin": 0}))
                register = to
            found.append(lowering.padded(register))
        return found[0], found[1]

    def _matrix(self, state: State) -> Tensor:
        return self.weight(state)[:, :, 0].movedim(2, 1).flatten(1)

    def _site(self) -> str:
        path = cast(Node, self.node.args[1]).path
        if not path.endswith(".weight"):
            raise NotNative("a product whose weight is computed")
        return path.removesuffix(".weight")


def _repeats(node: Node) -> tuple[Node, Node, Node] | None:
    """Channels seen as groups, each times the same image, and seen as channels again: that image, and the two calls."""
    product = node.users[0] if len(node.users) == 1 else None
    if product is None or product.name != "mul" or len(product.users) != 1 or product.users[0].name != "flatten":
        return None
    other = next((each for each in product.inputs() if each is not node), None)
    last = product.users[0]
    fits = other is not None and other.ndim == node.ndim and other.shape[-2] == 1 and other.shape[-1] == node.shape[-1]
    return (other, product, last) if fits and other is not None and last.shape == node.inputs()[0].shape else None


def activation(node: Node) -> dict[str, Any] | None:
    """Settings of the step that ends in this activation; None for any other operation."""
    if node.name in _CLAMPS:
        low, high = _CLAMPS[node.name]
        return {"low": low, "high": high}
    if node.name in ("hardtanh", "clamp", "clamp_min"):
        hard = node.name == "hardtanh"
        low = argument(node, 1, "min_val" if hard else "min", -1.0 if hard else None)
        high = argument(node, 2, "max_val" if hard else "max", 1.0 if hard else None)
        if not all(value is None or isinstance(value, (int, float)) for value in (low, high)):
            return None
        return {"low": -math.inf if low is None else float(low), "high": math.inf if high is None else float(high)}
    if node.name == "gelu":
        return {"act": "gelu_tanh" if argument(node, 1, "approximate", "none") == "tanh" else "gelu"}
    return {"act": _ACTS[node.name]} if node.name in _ACTS else None


def join_norm(affine: Affine, node: Node, lowering: Registers) -> None:
    """A batch norm in `eval` becomes part of what follows a product."""
    mean, variance = argument(node, 1, "running_mean"), argument(node, 2, "running_var")
    if argument(node, 5, "training", False) or mean is None or variance is None:
        raise NotNative("a batch norm that is trained")
    weight, bias = argument(node, 3, "weight"), argument(node, 4, "bias")
    affine.norm(
        None if weight is None else lowering.known(weight),
        None if bias is None else lowering.known(bias),
        lowering.known(mean),
        lowering.known(variance),
        float(argument(node, 7, "eps", 1e-5)),
    )


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))
