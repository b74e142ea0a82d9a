"""`lower`: a module to a `Program`, from the calls of one forward (`capture`).

A value is a view of a register, as torch sees it: sizes and strides over rows of padded channels, on the device `meta`.
Whatever only looks at memory in another way (permute, reshape, split) so costs nothing, and an operation that asks for
channels or pixels finds out from the strides which axis is which. What stands between products is joined to them
(`products`): bias, batch norm, layer scale, residual, activation, a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from headway.vision.runtime import attention
from headway.vision.runtime.capture import FOREIGN, GIVEN, PARAMETER, Node, NotNative, capture, each_of, mapped
from headway.vision.runtime.products import Chain, activation, join_norm
from headway.vision.runtime.program import Call, Place, Program, Segment, split
from headway.vision.runtime.registers import Registers
from headway.vision.runtime.steps import Affine, Number, State, Step
from headway.vision.runtime.values import (
    SAME,
    Apart,
    Axes,
    Held,
    Known,
    Padded,
    Scores,
    Stacked,
    Tiled,
    argument,
    image,
    meta,
    spread_over,
)

_RESHAPES = {"view", "reshape", "flatten", "unflatten"}


def lower(module: nn.Module, image: Tensor) -> Program:
    """The program of `module(image)`, image: (1, channels, height, width). Raises `NotNative`."""
    nodes, result = capture(module, image)
    lowering = _Lowering()
    for node in nodes:
        lowering.visit(node)
    return lowering.program(result)


class _Lowering(Registers):
    def __init__(self) -> None:
        super().__init__()
        self.called: set[Node] = set()
        """Nodes that torch computes."""

    def program(self, result: Any) -> Program:
        found = self._result(result)
        places = list[Place]()
        each_of(found, Place, places.append)
        parts = split(self.registers, self.steps, self.bare, {place.register for place in places})
        if not any(isinstance(part, Segment) for part in parts):
            calls = [part for part in parts if isinstance(part, Call)]
            raise NotNative(calls[0].why if calls else "it gives its input")
        return Program(parts, found)

    def _result(self, value: Any) -> Any:
        """The structure that the module gives, with places in it. Each tensor holds one image."""

        def at(node: Node) -> Place | Known | Apart:
            found = self._at(node)
            if not isinstance(found, Known) and node.shape[:1] != (1,):
                raise NotNative("its result has no axis of images")
            return found

        return mapped(value, Node, at)

    # Nodes

    def visit(self, node: Node) -> None:
        if node.name == FOREIGN:
            raise NotNative("a tensor that is neither a parameter nor a buffer")
        chain = self.joined.get(node)
        if chain is None:
            self._settle(node, lambda: self._value(node))
        elif node is chain.nodes[-1]:
            state = len(self.registers), len(self.steps)
            try:
                self.values[node] = chain.emit(self)
            except NotNative:  # each by itself
                self._forget(*state)
                for each in chain.nodes:
                    del self.joined[each]
                self._settle(chain.node, lambda: Chain(self, chain.node, alone=True).emit(self))
                for each in chain.nodes[1:]:
                    self.visit(each)

    def _settle(self, node: Node, value: Callable[[], Any]) -> None:
        """The node's value; where no step makes it, torch does."""
        state = len(self.registers), len(self.steps)
        try:
            self.values[node] = value()
        except NotNative as why:
            self._forget(*state)
            self.values[node] = self._apart(node, str(why))

    def _forget(self, registers: int, steps: int) -> None:
        gone = {step.node for step in self.steps[steps:] if isinstance(step, Call)}
        del self.registers[registers:], self.steps[steps:]
        self.called -= gone
        self.bare = {register for register in self.bare if register < registers}

    def _apart(self, node: Node, why: str = "") -> Apart:
        if node not in self.called:
            given = {each: self._at(each) for each in node.inputs()}
            self.called.add(node)
            self.steps.append(Call(node, given, why))
        return Apart(node)

    def _at(self, node: Node) -> Place | Known | Apart:
        """Where a call finds the node's value; what is only on its way to a step, torch computes."""
        value = self.values[node]
        if isinstance(value, (Known, Apart)):
            return value
        if not isinstance(value, Held):
            return self._apart(node)
        channels, ld, view = self.registers[value.register][2], self.ld(value.register), value.view
        packed = [stride // ld * channels + stride % ld for stride in view.stride()]
        offset = view.storage_offset() // ld * channels + view.storage_offset() % ld
        return Place(value.register, tuple(view.shape), tuple(packed), offset)

    def _value(self, node: Node) -> Any:
        if node.name == PARAMETER:
            path = node.path
            return Known(lambda state: state[path], node.shape)
        if node.name == GIVEN:
            _, channels, height, width = node.shape
            return Held(self.given(height, width, channels), image(channels, height, width, channels))
        if all(isinstance(self.values.get(each), Known) for each in node.inputs()):
            return self._known(node)
        return self._call(node)

    def _call(self, node: Node) -> Any:
        name = node.name
        given = [self.values.get(each) if isinstance(each, Node) else each for each in node.args]
        first = given[0]
        if name in SAME or (name in ("to", "type", "float") and node.dtype == torch.float32):
            return first
        if isinstance(first, Scores):
            return attention.of_scores(self, first, node)
        if isinstance(first, Stacked) and name == "unsqueeze" and node.shape[2:] == (1, len(first.parts)):
            return first
        if name in ("conv2d", "linear"):
            chain = Chain(self, node)
            if len(chain.nodes) == 1:
                return chain.emit(self)
            self.joined |= dict.fromkeys(chain.nodes, chain)
            return None
        if any(isinstance(self.values[each], Apart) for each in node.inputs()):
            return self._apart(node)
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
            return node.called(tensors)

        return Known(number, node.shape)

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
        return Held(register, meta([1, axes.channels], [self.ld(register), 1]).view(tuple(size)))

    # Operations, by their names in torch: the arguments given by place, what they stand for

    def _do_prelu(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        slope = spread_over(self.axes(held).channels, self.known(node.args[1]))
        if self.channel(held, self.axes(held)) != 1:
            raise NotNative("slopes along anything but the second axis")
        return self.emit("activate", [held], {"act": "prelu"}, numbers={"slope": slope})

    def _do_pixel_shuffle(self, node: Node, x: Any, factor: int) -> Held:
        held = self.held(x)
        register, axes = self.whole(held)
        height, width, channels = self.registers[register]
        if self.channel(held, axes) != 1 or held.view.ndim != 4 or factor < 2:
            raise NotNative("a shuffle of anything but images")
        to = self.register(height * factor, width * factor, channels // factor**2)
        self.steps.append(Step("shuffle", [register], to, {"stride": int(factor)}))
        return Held(to, image(channels // factor**2, height * factor, width * factor, self.ld(to)))

    def _do_pad(self, node: Node, x: Any, *_: Any) -> Any:
        pads, mode = argument(node, 1, "pad"), argument(node, 2, "mode", "constant")
        zero = argument(node, 3, "value") in (0, 0.0, None)
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
        if axes.channel != held.view.ndim - 1 or len(argument(node, 1, "normalized_shape")) != 1:
            raise NotNative("layer norm over anything but the channels")
        return self.emit(
            "layer_norm", [held], {"eps": argument(node, 4, "eps", 1e-5)}, self._affine(node, axes.channels)
        )

    def _do_group_norm(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        axes = self.axes(held)
        if argument(node, 1, "num_groups") != 1:
            raise NotNative("group norm of several groups")
        return self.emit(
            "group_norm", [held], {"eps": argument(node, 4, "eps", 1e-5)}, self._affine(node, axes.channels)
        )

    def _affine(self, node: Node, channels: int) -> Affine:
        """Of a norm with its weight and bias as third and fourth argument."""
        affine = Affine(channels)
        for add, at, name in ((affine.scale, 2, "weight"), (affine.bias, 3, "bias")):
            value = argument(node, at, name)
            if value is not None:
                add(self.known(value))
        return affine

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
        if isinstance(b, (int, float)) and not self.has_axes(x):
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

    def _smaller(self, a: Held | Tiled, b: Held | Tiled) -> bool:
        return isinstance(a, Tiled) or (isinstance(b, Held) and a.view.numel() < b.view.numel())

    def _by_channel(self, x: Held, axes: Axes, value: Any) -> Number:
        """A constant with one value for each channel, or one for all. Raises `NotNative` for any other."""
        if not isinstance(value, Known):
            constant = torch.full((axes.channels,), float(value))
            return lambda state: constant
        shape = (1,) * (x.view.ndim - len(value.shape)) + tuple(value.shape)
        channel = self.channel(x, axes)
        if any(size != 1 for axis, size in enumerate(shape) if axis != channel):
            raise NotNative("a constant for each pixel")
        return spread_over(axes.channels, value.number)

    def _fitting(self, x: Held, axes: Axes, other: Any, kind: str) -> Held:
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
        channel = self.channel(x, axes)
        same_channel = theirs.channel in (None, channel)
        if not same_channel or (theirs.rows != axes.rows and theirs.rows):
            raise NotNative("operands that lie differently")
        rows = all(held.view.shape[axis] == x.view.shape[axis] for axis in axes.rows)
        one = math.prod(self.registers[held.register][:2]) == 1
        if not (rows or one) or theirs.channels not in (1, axes.channels):
            raise NotNative("operands of different sizes")
        return held

    def _do_mean(self, node: Node, x: Any, *_: Any) -> Held:
        return self._over_pixels("mean", x, argument(node, 1, "dim"), bool(argument(node, 2, "keepdim", False)), {})

    def _do_adaptive_avg_pool2d(self, node: Node, x: Any, *_: Any) -> Held:
        size = argument(node, 1, "output_size")
        if any(each != 1 for each in (size if isinstance(size, (list, tuple)) else [size])):
            raise NotNative("pooling to more than one pixel")
        return self._over_pixels("mean", x, (-2, -1), True, {})

    def _do_std(self, node: Node, x: Any, *_: Any) -> Held:
        held = self.held(x)
        pixels = math.prod(self.registers[held.register][:2])
        unbiased = argument(node, 2, "unbiased", True)
        correction = node.kwargs.get("correction", int(bool(unbiased)))
        if pixels <= correction:
            raise NotNative("the deviation of one pixel")
        keepdim = bool(argument(node, 3, "keepdim", False))
        return self._over_pixels(
            "deviation", x, argument(node, 1, "dim"), keepdim, {"divisor": float(pixels - correction)}
        )

    def _over_pixels(self, kind: str, x: Any, dims: Any, keepdim: bool, settings: dict[str, Any]) -> Held:
        held = self.held(x)
        register, axes = self.whole(held)
        channel = self.channel(held, axes)
        over = {axis % held.view.ndim for axis in ([dims] if isinstance(dims, int) else dims or ())}
        if channel in over or not set(axes.rows) <= over:
            raise NotNative(f"{kind} over channels")
        to = self.register(1, 1, axes.channels)
        self.steps.append(Step(kind, [register], to, settings))
        size = [each if axis == channel else 1 for axis, each in enumerate(held.view.shape)]
        stride = [1 if axis == channel else self.ld(to) for axis in range(len(size))]
        kept = [axis for axis in range(len(size)) if keepdim or axis not in over]
        return Held(to, meta([size[axis] for axis in kept], [stride[axis] for axis in kept]))

    def _do_cat(self, node: Node, *_: Any) -> Any:
        nodes, dim = node.args[0], int(argument(node, 1, "dim", 0))
        if len(set(nodes)) == 1 and len(nodes) > 1:
            return self._tiled(self.held(nodes[0]), len(nodes), dim)
        helds = [self.held(each) for each in nodes]
        axes = [self.axes(held) for held in helds]
        channel = self.channel(helds[0], axes[0])
        if dim % helds[0].view.ndim != channel or any(each.rows != axes[0].rows for each in axes):
            raise NotNative("a concatenation of anything but channels")
        sources = [self.whole(held)[0] for held in helds]
        height, width, _ = self.registers[sources[0]]
        channels = sum(each.channels for each in axes)
        to = self.register(height, width, channels)
        self.steps.append(Step("join", sources, to))
        return self.like(helds[0], axes[0], to, channels)

    def _do_stack(self, node: Node, *_: Any) -> Any:
        if int(argument(node, 1, "dim", 0)) not in (-1, node.ndim - 1):
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
        if dim % held.view.ndim != self.channel(held, self.axes(held)):
            raise NotNative("a repetition of pixels")
        return Tiled(held, times)

    # Attention

    def _do_matmul(self, node: Node, a: Any, b: Any) -> Any:
        return attention.matmul(self, a, b)

    _do_bmm = _do_matmul

    def _do_scaled_dot_product_attention(self, node: Node, q: Any, k: Any, v: Any, *_: Any) -> Held:
        return attention.scaled_dot_product(self, node, q, k, v)


def _groups(x: Tensor, other: Tensor) -> bool:
    """Whether x's channels are seen as groups, each of which meets the same image."""
    if x.ndim != other.ndim or x.ndim < 3:
        return False
    side_by_side = x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] and x.shape[-2] > 1
    return side_by_side and other.shape[-2] == 1 and other.shape[-1] == x.shape[-1]
