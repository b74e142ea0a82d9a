"""`lower`: a module to a `Program`, from the calls of one forward (`capture`).

A value is a view of a register, as torch sees it: sizes and strides over rows of padded channels, on the device `meta`.
Whatever only looks at memory in another way (permute, reshape, split) so costs nothing, and an operation that asks for
channels or pixels finds out from the strides which axis is which. What stands between products is joined to them:
bias, batch norm, layer scale, residual, activation, a factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from headway.vision.runtime.capture import FOREIGN, GIVEN, PARAMETER, Node, NotNative, capture, filled
from headway.vision.runtime.program import Affine, Number, Output, Program, State, Step

BLOCK = 32
"""Channels are padded to a multiple of this."""


@dataclass(frozen=True)
class Held:
    """A view of a register: `view` has the sizes and strides, on `meta`."""

    register: int
    view: Tensor


@dataclass(frozen=True)
class Padded:
    """An image with zeros around it that the convolution after it will see: left, right, top, bottom."""

    inner: Held
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiled:
    """Channels of an image, over and over."""

    inner: Held
    times: int


@dataclass(frozen=True)
class Known:
    """A value that only depends on parameters, buffers and constants."""

    number: Number
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """softmax(q k^T factor + bias) on its way to being multiplied by values."""

    queries: Held
    keys: Held
    factor: float = 1.0
    bias: Known | None = None
    soft: bool = False
    turned: bool = False
    """Keys are rows now, queries columns."""


@dataclass(frozen=True)
class Stacked:
    """Images side by side along a new last axis."""

    parts: tuple[Held, ...]


_CLAMPS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
_ACTS = {"gelu": "gelu", "silu": "silu", "hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid", "sigmoid": "sigmoid"}
_SAME = {"dropout", "contiguous", "clone", "detach", "dropout2d"}
_RESHAPES = {"view", "reshape", "flatten", "unflatten"}


def lower(module: nn.Module, image: Tensor) -> Program:
    """The program of `module(image)`, image: (1, channels, height, width). Raises `NotNative`."""
    nodes, result = capture(module, image)
    if not isinstance(result, Node):
        raise NotNative("it gives more than one tensor")
    lowering = _Lowering()
    for node in nodes:
        lowering.visit(node)
    return lowering.program(result)


class _Lowering:
    def __init__(self) -> None:
        self.registers: list[tuple[int, int, int]] = []
        self.steps: list[Step] = []
        self.values: dict[Node, Any] = {}
        self.joined: dict[Node, _Chain] = {}
        """Nodes whose work a product does; the last of a chain makes the step."""

    def program(self, result: Node) -> Program:
        held = self.held(result)
        if held.register == 0:
            raise NotNative("it gives its input")
        channels = self.registers[held.register][2]
        ld, view = self.ld(held.register), held.view
        packed = [stride // ld * channels + stride % ld for stride in view.stride()]
        offset = view.storage_offset() // ld * channels + view.storage_offset() % ld
        if view.ndim < 2 or view.shape[0] != 1:
            raise NotNative("its result has no axis of images")
        output = Output(held.register, tuple(view.shape), tuple(packed), offset)
        return Program(self.registers, self.steps, output)

    # Nodes

    def visit(self, node: Node) -> None:
        if node in self.joined:
            chain = self.joined[node]
            if node is chain.nodes[-1]:
                self.values[node] = chain.emit(self)
        else:
            self.values[node] = self._value(node)

    def _value(self, node: Node) -> Any:
        if node.name == PARAMETER:
            path = node.path
            return Known(lambda state: state[path], node.shape)
        if node.name == FOREIGN:
            raise NotNative("a tensor that is neither a parameter nor a buffer")
        if node.name == GIVEN:
            _, channels, height, width = node.shape
            return Held(self.register(height, width, channels), _image(channels, height, width, channels))
        if all(isinstance(self.values.get(each), Known) for each in node.inputs()):
            return self._known(node)
        return self._call(node)

    def _call(self, node: Node) -> Any:
        name = node.name
        given = [self.values.get(each) if isinstance(each, Node) else each for each in node.args]
        first = given[0]
        if name in _SAME or (name in ("to", "type", "float") and node.dtype == torch.float32):
            return first
        if isinstance(first, Scores):
            return self._scores(name, first, node)
        if isinstance(first, Stacked) and name == "unsqueeze" and node.shape[2:] == (1, len(first.parts)):
            return first
        if name in ("conv2d", "linear"):
            chain = _Chain(self, node)
            for joined in chain.nodes:
                self.joined[joined] = chain
            return chain.emit(self) if len(chain.nodes) == 1 else None
        if node.is_view or name in _RESHAPES:
            return self._view(node)
        method = getattr(self, f"_do_{name}", None)
        if method is not None:
            return method(node, *given)
        act = activation(node)
        if act is not None:
            return self.emit("activate", [self.held(node.args[0])], act)
        raise NotNative(f"operation {name}")

    def _known(self, node: Node) -> Known:
        """What only depends on parameters and constants is computed when the weights are filled in."""
        inputs = {each: cast(Known, self.values[each]).number for each in node.inputs()}

        def number(state: State) -> Tensor:
            tensors = {each: give(state) for each, give in inputs.items()}
            made = node.function(*filled(node.args, tensors), **filled(dict(node.kwargs), tensors))
            return cast(Tensor, made if node.part is None else made[node.part])

        return Known(number, node.shape)

    # Registers

    def register(self, height: int, width: int, channels: int) -> int:
        self.registers.append((height, width, channels))
        return len(self.registers) - 1

    def ld(self, register: int) -> int:
        """Floats from one pixel to the next."""
        channels = self.registers[register][2]
        return channels if register == 0 else -(-channels // BLOCK) * BLOCK

    def held(self, node: Any) -> Held:
        value = self.values.get(node) if isinstance(node, Node) else node
        if not isinstance(value, Held):
            raise NotNative(f"{node} is no image")
        return value

    def whole(self, held: Held) -> tuple[int, _Axes]:
        """A register whose rows are this view's pixels and whose columns are its channels, and how they lie."""
        axes = self.axes(held)
        if axes.first == 0 and axes.channels == self.registers[held.register][2]:
            return held.register, axes
        height, width, _ = self.registers[held.register]
        to = self.register(height, width, axes.channels)
        self.steps.append(Step("take", [held.register], to, {"begin": axes.first}))
        return to, replace(axes, first=0)

    def axes(self, held: Held) -> _Axes:
        """Which axis is the channels; all pixels must be there, in order. Raises `NotNative`."""
        view, ld = held.view, self.ld(held.register)
        height, width, _ = self.registers[held.register]
        wide = [axis for axis, size in enumerate(view.shape) if size > 1]
        inner = [axis for axis in wide if view.stride(axis) < ld]
        rows = [axis for axis in wide if view.stride(axis) >= ld]
        if len(inner) > 1 or any(view.stride(axis) != 1 for axis in inner):
            raise NotNative("channels that do not lie side by side")
        step = ld
        for axis in reversed(rows):
            if view.stride(axis) != step:
                raise NotNative("pixels that are not in order")
            step *= view.shape[axis]
        if step != ld * height * width or view.storage_offset() >= ld:
            raise NotNative("a part of an image's pixels")
        channel = inner[0] if inner else None
        return _Axes(channel, 1 if channel is None else view.shape[channel], view.storage_offset(), tuple(rows))

    def like(self, held: Held, axes: _Axes, register: int, channels: int) -> Held:
        """A register of as many pixels seen the way `held` sees its own."""
        ld, view = self.ld(register), held.view
        size, stride = list(view.shape), [ld] * view.ndim
        old = self.ld(held.register)
        for axis in axes.rows:
            stride[axis] = view.stride(axis) // old * ld
        channel = self._channel(held, axes)
        size[channel], stride[channel] = channels, 1
        return Held(register, _meta(size, stride))

    @staticmethod
    def _channel(held: Held, axes: _Axes) -> int:
        """The axis of the channels; with one channel it is one of the axes of size 1: an image's second."""
        if axes.channel is not None:
            return axes.channel
        ones = [axis for axis, size in enumerate(held.view.shape) if size == 1 and axis > 0]
        if not ones:
            raise NotNative("an image without channels")
        return ones[0] if held.view.ndim == 4 else ones[-1]

    def emit(
        self,
        kind: str,
        sources: Sequence[Held],
        settings: dict[str, Any] | None = None,
        affine: Affine | None = None,
        numbers: dict[str, Number] | None = None,
    ) -> Held:
        """A step whose result looks like its first source."""
        first = sources[0]
        registers = []
        axes = self.axes(first)
        for held in sources:
            register, _ = self.whole(held)
            registers.append(register)
        height, width, channels = self.registers[registers[0]]
        to = self.register(height, width, channels)
        self.steps.append(Step(kind, registers, to, settings or {}, affine, numbers=numbers or {}))
        return self.like(first, axes, to, channels)

    # Views

    def _view(self, node: Node) -> Any:
        held = self.held(node.args[0])
        rest = node.args[1:]
        function, keywords = node.function, dict(node.kwargs)
        if node.name in _RESHAPES:
            return self._reshaped(held, node.shape)
        try:
            made = function(held.view, *rest, **keywords)
        except RuntimeError:
            raise NotNative(f"{node.name} of this image") from None
        made = made if node.part is None else made[node.part]
        if made._base is None:
            raise NotNative(f"{node.name} copies")
        return Held(held.register, made)

    def _reshaped(self, held: Held, size: Sequence[int]) -> Held:
        """Another shape of the same values, where no value need move."""
        try:
            return Held(held.register, held.view.view(tuple(size)))
        except RuntimeError:
            pass
        height, width, _ = self.registers[held.register]
        if height * width != 1:
            raise NotNative("a reshape that moves pixels")
        register, axes = self.whole(held)
        return Held(register, _meta([1, axes.channels], [self.ld(register), 1]).view(tuple(size)))

    # Operations, by their names in torch: the arguments given by place, what they stand for

    def _do_prelu(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        slope = spread_over(self.axes(held).channels, self.known(node.args[1]))
        if self._channel(held, self.axes(held)) != 1:
            raise NotNative("slopes along anything but the second axis")
        return self.emit("activate", [held], {"act": "prelu"}, numbers={"slope": slope})

    def _do_pixel_shuffle(self, node: Node, x: Any, factor: int) -> Held:
        held = self.held(x)
        register, axes = self.whole(held)
        height, width, channels = self.registers[register]
        if self._channel(held, axes) != 1 or held.view.ndim != 4 or factor < 2:
            raise NotNative("a shuffle of anything but images")
        to = self.register(height * factor, width * factor, channels // factor**2)
        self.steps.append(Step("shuffle", [register], to, {"stride": int(factor)}))
        return Held(to, _image(channels // factor**2, height * factor, width * factor, self.ld(to)))

    def _do_pad(self, node: Node, x: Any, *_: Any) -> Any:
        pads, mode = _argument(node, 1, "pad"), _argument(node, 2, "mode", "constant")
        zero = _argument(node, 3, "value") in (0, 0.0, None)
        if mode != "constant" or not zero or len(pads) != 4 or min(pads) < 0:
            raise NotNative("padding with anything but zeros")
        return Padded(self.held(x), cast(Any, tuple(pads)))

    def _do_batch_norm(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        affine = Affine(self.axes(held).channels)
        join_norm(affine, node, self)
        return self.emit("scale_shift", [held], affine=affine)

    def _do_layer_norm(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        axes = self.axes(held)
        if axes.channel != held.view.ndim - 1 or len(_argument(node, 1, "normalized_shape")) != 1:
            raise NotNative("layer norm over anything but the channels")
        return self.emit(
            "layer_norm", [held], {"eps": _argument(node, 4, "eps", 1e-5)}, self._affine(node, axes.channels)
        )

    def _do_group_norm(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        axes = self.axes(held)
        if _argument(node, 1, "num_groups") != 1:
            raise NotNative("group norm of several groups")
        return self.emit(
            "group_norm", [held], {"eps": _argument(node, 4, "eps", 1e-5)}, self._affine(node, axes.channels)
        )

    def _affine(self, node: Node, channels: int) -> Affine:
        """Of a norm with its weight and bias as third and fourth argument."""
        affine = Affine(channels)
        for add, at, name in ((affine.scale, 2, "weight"), (affine.bias, 3, "bias")):
            value = _argument(node, at, name)
            if value is not None:
                add(self.known(value))
        return affine

    def known(self, node: Any) -> Number:
        value = self.values.get(node)
        if not isinstance(value, Known):
            raise NotNative("a norm whose numbers depend on the image")
        return value.number

    def _do_add(self, node: Node, a: Any, b: Any, *_: Any) -> Any:
        if node.kwargs.get("alpha", 1) != 1:
            raise NotNative("a sum with a factor")
        return self._pair(node, "add", a, b)

    def _do_sub(self, node: Node, a: Any, b: Any) -> Any:
        if not isinstance(b, (int, float)) or node.kwargs:
            raise NotNative("a difference of images")
        return self._pair(node, "add", a, -b)

    def _do_mul(self, node: Node, a: Any, b: Any) -> Any:
        return self._pair(node, "multiply", a, b)

    def _do_div(self, node: Node, a: Any, b: Any) -> Any:
        if not isinstance(b, (int, float)):
            raise NotNative("a quotient of images")
        return self._pair(node, "multiply", a, 1.0 / b)

    def _pair(self, node: Node, kind: str, a: Any, b: Any) -> Held:
        if (
            not isinstance(a, (Held, Tiled))
            or (isinstance(a, Tiled) and isinstance(b, Held))
            or (isinstance(b, (Held, Tiled)) and self._smaller(a, b))
        ):
            a, b = b, a
        x = self.held(a)
        if isinstance(b, (int, float)) and not self._plain_axes(x):
            # One number for all: the whole register, seen as before.
            height, width, channels = self.registers[x.register]
            to, affine, constant = self.register(height, width, channels), Affine(channels), torch.tensor(float(b))
            affine.scale(lambda state: constant) if kind == "multiply" else affine.bias(lambda state: constant)
            self.steps.append(Step("scale_shift", [x.register], to, {}, affine))
            return Held(to, x.view)
        if kind == "multiply" and isinstance(b, Held) and _groups(x.view, b.view):
            flat = Held(x.register, x.view.flatten(-2))
            product = self._pair(node, kind, flat, Tiled(Held(b.register, b.view.flatten(-2)), x.view.shape[-2]))
            return Held(product.register, product.view.unflatten(-1, tuple(x.view.shape[-2:])))
        axes = self.axes(x)
        if isinstance(b, (int, float, Known)):
            affine = Affine(axes.channels)
            value = self._by_channel(x, axes, b)
            affine.scale(value) if kind == "multiply" else affine.bias(value)
            return self.emit("scale_shift", [x], affine=affine)
        return self.emit(kind, [x, self._fitting(x, axes, b, kind)])

    def _plain_axes(self, held: Held) -> bool:
        try:
            self.axes(held)
        except NotNative:
            return False
        return True

    def _smaller(self, a: Held | Tiled, b: Held | Tiled) -> bool:
        return isinstance(a, Tiled) or (isinstance(b, Held) and a.view.numel() < b.view.numel())

    def _by_channel(self, x: Held, axes: _Axes, value: Any) -> Number:
        """A constant with one value for each channel, or one for all. Raises `NotNative` for any other."""
        if not isinstance(value, Known):
            constant = torch.full((axes.channels,), float(value))
            return lambda state: constant
        shape = (1,) * (x.view.ndim - len(value.shape)) + tuple(value.shape)
        channel = self._channel(x, axes)
        if any(size != 1 for axis, size in enumerate(shape) if axis != channel):
            raise NotNative("a constant for each pixel")
        return spread_over(axes.channels, value.number)

    def _fitting(self, x: Held, axes: _Axes, other: Any, kind: str) -> Held:
        """The other operand, when it has a value for each of x, for each channel or for each pixel."""
        if isinstance(other, Tiled):
            if kind != "multiply":
                raise NotNative("a sum with repeated channels")
            inner = self.axes(other.inner)
            if inner.channel != axes.channel or inner.rows != axes.rows:
                raise NotNative("a product of images that lie differently")
            return other.inner
        held = self.held(other)
        theirs = self.axes(held)
        if held.view.ndim != x.view.ndim:
            raise NotNative("operands of different rank")
        channel = self._channel(x, axes)
        same_channel = theirs.channel in (None, channel)
        if not same_channel or (theirs.rows != axes.rows and theirs.rows):
            raise NotNative("operands that lie differently")
        rows = all(held.view.shape[axis] == x.view.shape[axis] for axis in axes.rows)
        one = math.prod(self.registers[held.register][:2]) == 1
        if not (rows or one) or theirs.channels not in (1, axes.channels):
            raise NotNative("operands of different sizes")
        return held

    def _do_mean(self, node: Node, x: Any, *_: Any) -> Held:
        return self._over_pixels("mean", x, _argument(node, 1, "dim"), bool(_argument(node, 2, "keepdim", False)), {})

    def _do_adaptive_avg_pool2d(self, node: Node, x: Any, *_: Any) -> Held:
        size = _argument(node, 1, "output_size")
        if any(each != 1 for each in (size if isinstance(size, (list, tuple)) else [size])):
            raise NotNative("pooling to more than one pixel")
        return self._over_pixels("mean", x, (-2, -1), True, {})

    def _do_std(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        pixels = math.prod(self.registers[held.register][:2])
        unbiased = _argument(node, 2, "unbiased", True)
        correction = node.kwargs.get("correction", int(bool(unbiased)))
        if pixels <= correction:
            raise NotNative("the deviation of one pixel")
        keepdim = bool(_argument(node, 3, "keepdim", False))
        return self._over_pixels(
            "deviation", x, _argument(node, 1, "dim"), keepdim, {"divisor": float(pixels - correction)}
        )

    def _over_pixels(self, kind: str, x: Any, dims: Any, keepdim: bool, settings: dict[str, Any]) -> Held:
        held = self.held(x)
        register, axes = self.whole(held)
        channel = self._channel(held, axes)
        over = {axis % held.view.ndim for axis in ([dims] if isinstance(dims, int) else dims or ())}
        if channel in over or not set(axes.rows) <= over:
            raise NotNative(f"{kind} over channels")
        to = self.register(1, 1, axes.channels)
        self.steps.append(Step(kind, [register], to, settings))
        size = [each if axis == channel else 1 for axis, each in enumerate(held.view.shape)]
        stride = [1 if axis == channel else self.ld(to) for axis in range(len(size))]
        kept = [axis for axis in range(len(size)) if keepdim or axis not in over]
        return Held(to, _meta([size[axis] for axis in kept], [stride[axis] for axis in kept]))

    def _do_cat(self, node: Node, *_: Any) -> Any:
        nodes, dim = node.args[0], int(_argument(node, 1, "dim", 0))
        if len(set(nodes)) == 1 and len(nodes) > 1:
            return self._tiled(self.held(nodes[0]), len(nodes), dim)
        helds = [self.held(each) for each in nodes]
        axes = [self.axes(held) for held in helds]
        channel = self._channel(helds[0], axes[0])
        if dim % helds[0].view.ndim != channel or any(each.rows != axes[0].rows for each in axes):
            raise NotNative("a concatenation of anything but channels")
        sources = [self.whole(held)[0] for held in helds]
        height, width, _ = self.registers[sources[0]]
        channels = sum(each.channels for each in axes)
        to = self.register(height, width, channels)
        self.steps.append(Step("join", sources, to))
        return self.like(helds[0], axes[0], to, channels)

    def _do_stack(self, node: Node, *_: Any) -> Any:
        if int(_argument(node, 1, "dim", 0)) not in (-1, node.ndim - 1):
            raise NotNative("a stack along any axis but the last")
        return Stacked(tuple(self.held(each) for each in node.args[0]))

    def _do_std_mean(self, node: Node, x: Any, *rest: Any) -> Held:
        return self._do_std(node, x, *rest) if node.part == 0 else self._do_mean(node, x, *rest)

    def _do_repeat(self, node: Node, x: Any, *times: Any) -> Any:
        held = self.held(x)
        counts = list(times[0]) if len(times) == 1 and not isinstance(times[0], int) else list(times)
        many = [axis for axis, each in enumerate(counts) if each != 1]
        if len(counts) != held.view.ndim or len(many) > 1:
            raise NotNative("a repetition of pixels")
        return self._tiled(held, counts[many[0]], many[0]) if many else held

    def _tiled(self, held: Held, times: int, dim: int) -> Tiled:
        if dim % held.view.ndim != self._channel(held, self.axes(held)):
            raise NotNative("a repetition of pixels")
        return Tiled(held, times)

    # Attention

    def _do_matmul(self, node: Node, a: Any, b: Any) -> Any:
        if isinstance(b, Scores):
            # values^T scores^T: what comes of it is turned as well.
            if not (b.soft and b.turned):
                raise NotNative("a product of scores")
            made = self._attend(replace(b, turned=False), _turned(self.held(a)))
            return _turned(made)
        left, right = self.held(a), self.held(b)
        if left.view.shape[-1] < 1 or left.view.stride(-1) != 1 or right.view.stride(-2) != 1:
            raise NotNative("a product of images")
        return Scores(left, _turned(right))

    _do_bmm = _do_matmul

    def _do_scaled_dot_product_attention(self, node: Node, q: Any, k: Any, v: Any, *_: Any) -> Held:
        mask = _argument(node, 3, "attn_mask")
        bias = None if mask is None else self.values.get(mask)
        if _argument(node, 5, "is_causal", False) or not (bias is None or isinstance(bias, Known)):
            raise NotNative("attention with a mask that is no constant")
        queries, scale = self.held(q), node.kwargs.get("scale")
        factor = queries.view.shape[-1] ** -0.5 if scale is None else float(scale)
        return self._attend(Scores(queries, self.held(k), factor, bias, soft=True), self.held(v))

    def _scores(self, name: str, scores: Scores, node: Node) -> Any:
        other = node.args[1] if len(node.args) > 1 else None
        value = self.values.get(other) if isinstance(other, Node) else other
        if name in ("mul", "div") and isinstance(value, (int, float)) and scores.bias is None and not scores.soft:
            return replace(scores, factor=scores.factor * (value if name == "mul" else 1.0 / value))
        if name == "add" and isinstance(value, Known) and scores.bias is None and not scores.soft:
            return replace(scores, bias=value)
        if name == "softmax" and not scores.turned and _argument(node, 1, "dim") in (-1, node.ndim - 1):
            return replace(scores, soft=True)
        if name in _SAME:
            return scores
        if node.is_view and scores.soft:
            square = torch.empty_strided(node.shape, [0] * (node.ndim - 2) + [1, 10**6], device="meta")
            if node.function(square.transpose(-2, -1), *node.args[1:], **node.kwargs).stride()[-2:] == (1, 10**6):
                return replace(scores, turned=not scores.turned)
        if name == "matmul" and scores.soft and not scores.turned and isinstance(value, Held):
            return self._attend(scores, value)
        raise NotNative(f"{name} of attention scores")

    def _attend(self, scores: Scores, values: Held) -> Held:
        """values: (..., keys, channels); the result: (..., queries, channels)."""
        parts = [self._rows_of_heads(held) for held in (scores.queries, scores.keys, values)]
        heads = max(part.heads for part in parts)
        if any(part.heads not in (1, heads) for part in parts):
            raise NotNative("heads that share keys")
        queries, keys, mixed = parts
        height, width, _ = self.registers[queries.register]
        settings: dict[str, Any] = {
            "heads": heads,
            "key_dim": queries.dim,
            "value_dim": mixed.dim,
            "factor": scores.factor,
            "first": [part.first for part in parts],
            "next": [part.next for part in parts],
        }
        numbers = {}
        if scores.bias is not None:
            bias, size = scores.bias, (heads, queries.rows, keys.rows)
            numbers["bias"] = lambda state: bias.number(state).expand(1, *size)
        to = self.register(height, width, heads * mixed.dim)
        self.steps.append(
            Step(
                "attention", [part.register for part in parts], to, settings, numbers=cast("dict[str, Number]", numbers)
            )
        )
        ld, shape = self.ld(to), list(values.view.shape)
        shape[-2] = queries.rows
        stride = [ld] * len(shape)
        stride[-1], stride[-2] = 1, ld
        if len(shape) > 2:
            stride[-3] = mixed.dim
        return Held(to, _meta(shape, stride))

    def _rows_of_heads(self, held: Held) -> _Rows:
        """(..., heads, rows, channels), as it lies in its register."""
        view, ld = held.view, self.ld(held.register)
        height, width, _ = self.registers[held.register]
        heads = view.shape[-3] if view.ndim > 2 else 1
        fits = (
            view.stride(-1) == 1 and (view.shape[-2] == 1 or view.stride(-2) == ld) and view.shape[-2] == height * width
        )
        if not fits or any(size != 1 for size in view.shape[:-3]) or view.storage_offset() >= ld:
            raise NotNative("attention over rows that do not lie in order")
        step = view.stride(-3) if heads > 1 else 0
        if step >= ld:
            raise NotNative("attention over rows that do not lie in order")
        return _Rows(held.register, heads, view.shape[-2], view.shape[-1], view.storage_offset(), step)


@dataclass(frozen=True)
class _Axes:
    channel: int | None
    """None: there is one channel."""
    channels: int
    first: int
    rows: tuple[int, ...]
    """Axes of more than one pixel."""


@dataclass(frozen=True)
class _Rows:
    register: int
    heads: int
    rows: int
    dim: int
    first: int
    next: int


class _Chain:
    """A product and what can be joined to it: each operation is the only user of the one before."""

    def __init__(self, lowering: _Lowering, node: Node) -> None:
        self.node = node
        self.nodes = [node]
        self.weight = lowering.known(node.args[1])
        self.over = lowering.values.get(node.args[0])
        self.stacked = False
        self.slope: Number | None = None
        self.shape = node.args[1].shape
        self.linear = node.name == "linear"
        bias = _argument(node, 2, "bias")
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
        self._follow(lowering)

    def _convolution(self) -> None:
        node, shape = self.node, self.shape
        stride, dilation = (_pair(_argument(node, at, name, 1)) for at, name in ((3, "stride"), (5, "dilation")))
        padding = _argument(node, 4, "padding", 0)
        self.groups = int(_argument(node, 6, "groups", 1))
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

    def _follow(self, lowering: _Lowering) -> None:
        last, acted = self.node, False
        while len(last.users) == 1:
            user = next(iter(last.users))
            name = user.name
            act = activation(user)
            plain = not acted and self.residual is None
            if name in _SAME:
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

    def _joins(self, lowering: _Lowering, user: Node, last: Node, plain: bool) -> bool:
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

    def emit(self, lowering: _Lowering) -> Held:
        value = lowering.values[self.node.args[0]]
        if isinstance(value, Stacked):
            value = self._joined(lowering, value)
        pads = self.pads
        if isinstance(value, Padded):
            pads = cast(Any, tuple(a + b for a, b in zip(pads, value.pads, strict=True)))
            value = value.inner
        x = lowering.held(value)
        axes = lowering.axes(x)
        ndim = x.view.ndim
        wanted = ndim - 1 if self.linear else 1
        if lowering._channel(x, axes) != wanted or (not self.linear and ndim != 4):
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
        if self.product and register == 0:  # rows of the input are not padded
            to = lowering.register(height, width, channels)
            lowering.steps.append(Step("take", [0], to, {"begin": 0}))
            register = to
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
        return Held(to, _image(out, out_h, out_w, lowering.ld(to)))

    def _joined(self, lowering: _Lowering, stacked: Stacked) -> Held:
        """Columns of single pixels as channels of one, part after part, for a kernel as wide as there are parts."""
        sources = [lowering.whole(part)[0] for part in stacked.parts]
        channels = self.shape[1] * len(sources)
        if tuple(self.shape[2:]) != (1, len(sources)) or any(
            lowering.registers[source] != (1, 1, self.shape[1]) for source in sources
        ):
            raise NotNative("a convolution of stacked images")
        to = lowering.register(1, 1, channels)
        lowering.steps.append(Step("join", sources, to))
        return Held(to, _image(channels, 1, 1, lowering.ld(to)))

    @staticmethod
    def _reshaped(lowering: _Lowering, x: Held, register: int, channels: int) -> tuple[int, int, int]:
        """The same rows as an image of the view's height and width."""
        height, width = x.view.shape[2], x.view.shape[3]
        to = lowering.register(height, width, channels)
        lowering.steps.append(Step("take", [register], to, {"begin": 0}))
        return height, width, to

    def _operands(
        self, lowering: _Lowering, x: Held, axes: _Axes, out: int, size: tuple[int, int]
    ) -> tuple[int | None, int | None]:
        """Registers of the residual and the factor."""
        found: list[int | None] = []
        for node in (self.residual, self.times):
            if node is None:
                found.append(None)
                continue
            value = lowering.values[node]
            held = value.inner if isinstance(value, Tiled) else lowering.held(value)
            register, theirs = lowering.whole(held)
            ndim = held.view.ndim
            channel = lowering._channel(held, theirs)
            if channel != (ndim - 1 if self.linear else 1):
                raise NotNative("operands that lie differently")
            if node is self.residual and lowering.registers[register] != (*size, out):
                if math.prod(lowering.registers[register][:2]) != math.prod(size):
                    raise NotNative("operands of different sizes")
                to = lowering.register(*size, out)
                lowering.steps.append(Step("take", [register], to, {"begin": 0}))
                register = to
            if register == 0:
                raise NotNative("the input is added as it is")
            found.append(register)
        return found[0], found[1]

    def _matrix(self, state: State) -> Tensor:
        return self.weight(state)[:, :, 0].movedim(2, 1).flatten(1)

    def _site(self) -> str:
        path = cast(Node, self.node.args[1]).path
        if not path.endswith(".weight"):
            raise NotNative("a product whose weight is computed")
        return path.removesuffix(".weight")


def _groups(x: Tensor, other: Tensor) -> bool:
    """Whether x's channels are seen as groups, each of which meets the same image."""
    if x.ndim != other.ndim or x.ndim < 3:
        return False
    side_by_side = x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] and x.shape[-2] > 1
    return side_by_side and other.shape[-2] == 1 and other.shape[-1] == x.shape[-1]


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
        low = _argument(node, 1, "min_val" if hard else "min", -1.0 if hard else None)
        high = _argument(node, 2, "max_val" if hard else "max", 1.0 if hard else None)
        if not all(value is None or isinstance(value, (int, float)) for value in (low, high)):
            return None
        return {"low": -math.inf if low is None else float(low), "high": math.inf if high is None else float(high)}
    if node.name == "gelu":
        return {"act": "gelu_tanh" if _argument(node, 1, "approximate", "none") == "tanh" else "gelu"}
    return {"act": _ACTS[node.name]} if node.name in _ACTS else None


def spread_over(channels: int, number: Number) -> Number:
    """One value for each channel, where there may be one for all."""
    return lambda state: number(state).reshape(-1).expand(channels)


def join_norm(affine: Affine, node: Node, lowering: _Lowering) -> None:
    """A batch norm in `eval` becomes part of what follows a product."""
    mean, variance = _argument(node, 1, "running_mean"), _argument(node, 2, "running_var")
    if _argument(node, 5, "training", False) or mean is None or variance is None:
        raise NotNative("a batch norm that is trained")
    weight, bias = _argument(node, 3, "weight"), _argument(node, 4, "bias")
    affine.norm(
        None if weight is None else lowering.known(weight),
        None if bias is None else lowering.known(bias),
        lowering.known(mean),
        lowering.known(variance),
        float(_argument(node, 7, "eps", 1e-5)),
    )


def _argument(node: Node, at: int, name: str, otherwise: Any = None) -> Any:
    """An argument that may be given by its place or by its name."""
    return node.args[at] if len(node.args) > at else node.kwargs.get(name, otherwise)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _meta(size: Sequence[int], stride: Sequence[int]) -> Tensor:
    return torch.empty_strided(tuple(size), tuple(stride), device="meta")


def _image(channels: int, height: int, width: int, ld: int) -> Tensor:
    return _meta([1, channels, height, width], [height * width * ld, 1, width * ld, ld])


def _turned(held: Held) -> Held:
    return Held(held.register, held.view.transpose(-2, -1))
