"""Which channels of a network stand between two products, found from the calls of one forward (`capture`).

A channel that a product makes goes through what treats channels one by one (norm, activation, depthwise convolution,
pooling, a gate) to the products that read it. Where all of these are layers that can be resized, it can be cut from
every one of them, and nothing else changes. A channel that is added to another one (a residual stream), that is mixed
by anything but a product, or that leaves the network cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from headway.core.module_cut import RESIZED
from headway.vision.runtime.capture import GIVEN, PARAMETER, Node, Passed, capture
from headway.vision.runtime.values import argument

LEAST = 4
"""Channels that a group must have to be worth a look."""
_ONE_BY_ONE = {
    "relu", "relu6", "hardtanh", "clamp", "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu",
    "elu", "mish", "softplus", "dropout", "dropout2d", "contiguous", "clone", "float", "to", "neg", "square", "sqrt",
    "exp", "abs",
}  # fmt: skip
_OVER_PIXELS = {
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "interpolate", "mean", "sum", "amax",
}  # fmt: skip
_PAIRS = {"add", "sub", "mul", "div"}
_VIEWS = {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze", "unsqueeze"}


@dataclass(frozen=True)
class Group:
    """Channels that are cut together. Paths of layers: `makers` have them as outputs, `readers` as inputs, `through`
    as both.
    """

    width: int
    makers: tuple[str, ...]
    through: tuple[str, ...]
    readers: tuple[str, ...]
    block: str = ""
    """The module that adds what these channels become to its input: left out, it gives what it is given."""
    norms: Mapping[str, str] = field(default_factory=dict)
    """Of a reader, the batch norm that takes what it gives."""

    @property
    def layers(self) -> tuple[str, ...]:
        return (*self.makers, *self.through, *self.readers)

    @property
    def name(self) -> str:
        return self.makers[0]


@dataclass(eq=False)
class _Set:
    """Channels that belong together, as found so far."""

    width: int
    makers: list[str] = field(default_factory=list)
    through: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    whole: bool = False
    """They have to stay as they are."""
    joined: _Set | None = None

    def root(self) -> _Set:
        return self if self.joined is None else self.joined.root()

    def join(self, other: _Set) -> None:
        mine, theirs = self.root(), other.root()
        if mine is theirs:
            return
        mine.makers += theirs.makers
        mine.through += theirs.through
        mine.readers += theirs.readers
        mine.whole |= theirs.whole
        theirs.joined = mine


@dataclass(frozen=True)
class _Channels:
    """Along which axis of a value a set lies."""

    held: _Set
    axis: int


def groups_of(module: nn.Module, image: Tensor) -> list[Group]:
    """Channels that can be cut, in the order of the calls; image: (1, channels, height, width).

    Raises `NotNative` for a network that cannot be captured.
    """
    passed: Passed = {}
    nodes, result = capture(module, image, passed)
    tracer = _Tracer(module)
    for node in nodes:
        tracer.visit(node)
    tracer.leave(result)
    roots = dict.fromkeys(held.root() for held in tracer.sets)
    found = [
        Group(
            held.width,
            tuple(held.makers),
            tuple(held.through),
            tuple(held.readers),
            norms={path: tracer.norms[path] for path in held.readers if path in tracer.norms},
        )
        for held in roots
        if not held.whole and held.makers and held.readers and held.width >= LEAST
    ]
    return _with_blocks(found, passed)


class _Tracer:
    def __init__(self, module: nn.Module) -> None:
        self.layers = {path: child for path, child in module.named_modules() if isinstance(child, RESIZED)}
        self.values: dict[Node, _Channels] = {}
        self.sets: list[_Set] = []
        self.products: dict[Node, str] = {}
        self.norms: dict[str, str] = {}
        """Product -> the norm behind it, which alone takes what it gives."""

    def visit(self, node: Node) -> None:
        if node.name == GIVEN:
            self._new(node, node.shape[1], axis=1).whole = True
        made = getattr(self, f"_do_{node.name}", None)
        if made is not None and made(node):
            return
        known = [each for each in node.inputs() if each in self.values]
        if not known:
            return
        x = node.args[0] if node.args and isinstance(node.args[0], Node) else None
        if x in self.values and len(known) == 1 and self._one(node, x, self.values[x]):
            return
        if node.name in _PAIRS and self._pair(node):
            return
        self.leave(known)

    def leave(self, value: Any) -> None:
        """What nothing more is known of keeps its channels."""
        if isinstance(value, Node) and value in self.values:
            self.values[value].held.root().whole = True
        elif isinstance(value, tuple | list):
            for each in value:
                self.leave(each)
        elif isinstance(value, dict):
            self.leave(list(value.values()))

    def _new(self, node: Node, width: int, axis: int) -> _Set:
        made = _Set(width)
        self.sets.append(made)
        self.values[node] = _Channels(made, axis)
        return made

    def _layer(self, node: Node, weight: int, kind: type[nn.Module]) -> str | None:
        """The path of the layer whose weight this call takes; None where it is shared, or made of something else."""
        held = argument(node, weight, "weight")
        if not isinstance(held, Node) or held.name != PARAMETER or len(held.users) != 1:
            return None
        path, _, leaf = held.path.rpartition(".")
        layer = self.layers.get(path)
        plain = isinstance(layer, kind) and not (layer._forward_hooks or layer._forward_pre_hooks)
        return path if plain and leaf == "weight" else None

    # Products

    def _do_conv2d(self, node: Node) -> bool:
        path = self._layer(node, 1, nn.Conv2d)
        if path is None:
            return False
        x, layer = node.args[0], cast(nn.Conv2d, self.layers[path])
        if layer.groups == 1:
            return self._product(node, x, path, layer.out_channels, node.ndim - 3)
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return depthwise and self._along(x, 3) and self._through(node, x, path)

    def _do_linear(self, node: Node) -> bool:
        path = self._layer(node, 1, nn.Linear)
        return path is not None and self._product(node, node.args[0], path, node.shape[-1], node.ndim - 1)

    def _product(self, node: Node, x: Node, path: str, width: int, axis: int) -> bool:
        if self._along(x, node.ndim - axis):
            self.values[x].held.root().readers.append(path)
        else:
            self.leave(x)
        self._new(node, width, axis).makers.append(path)
        self.products[node] = path
        return True

    def _along(self, x: Node, from_end: int) -> bool:
        """Whether a set is known to lie along that axis."""
        return x in self.values and self.values[x].axis == len(x.shape) - from_end

    def _do_batch_norm(self, node: Node) -> bool:
        x = node.args[0]
        path = self._layer(node, 3, nn.Module)
        if path is None or x not in self.values or self.values[x].axis != 1:
            return False
        if x in self.products and len(x.users) == 1:
            self.norms[self.products[x]] = path
        return self._through(node, x, path)

    def _through(self, node: Node, x: Node, path: str) -> bool:
        self.values[x].held.root().through.append(path)
        self.values[node] = _Channels(self.values[x].held, self.values[x].axis + node.ndim - len(x.shape))
        return True

    # What is done to channels one by one

    def _one(self, node: Node, x: Node, channels: _Channels) -> bool:
        """Of one value: the same channels, along whichever axis they lie now."""
        if node.name in _PAIRS:
            others = [each for each in (*node.args, *node.kwargs.values()) if isinstance(each, Node) and each is not x]
            if any(math.prod(each.shape) != 1 for each in others):
                return False
        elif node.name == "pad":
            pads = argument(node, 1, "pad")
            if len(pads) > 2 * (len(x.shape) - 1 - channels.axis):
                return False
        elif node.name not in _ONE_BY_ONE | _OVER_PIXELS | _VIEWS:
            return False
        axis = self._axis(node, x, channels)
        if axis is None:
            return False
        self.values[node] = _Channels(channels.held, axis)
        return True

    def _axis(self, node: Node, x: Node, channels: _Channels) -> int | None:
        width = channels.held.width
        if node.name in _VIEWS:
            # An axis keeps its stride, whatever is done to the others.
            strides = torch.empty(x.shape, device="meta").stride()
            try:
                made = node.called({x: torch.empty(x.shape, device="meta")})
            except (RuntimeError, KeyError, TypeError):
                return None
            fits = [
                axis
                for axis, (size, stride) in enumerate(zip(made.shape, made.stride(), strict=True))
                if size == width and stride == strides[channels.axis]
            ]
            return fits[0] if len(fits) == 1 else None
        if len(node.shape) == len(x.shape):
            return channels.axis if node.shape[channels.axis] == width else None
        over = argument(node, 1, "dim")
        dims = [over] if isinstance(over, int) else list(over or range(len(x.shape)))
        gone = {dim % len(x.shape) for dim in dims}
        return None if channels.axis in gone else channels.axis - sum(dim < channels.axis for dim in gone)

    def _pair(self, node: Node) -> bool:
        """Of two values: channel by channel, those of both belong together."""
        a, b = node.args[:2] if len(node.args) > 1 else (None, None)
        if not (isinstance(a, Node) and isinstance(b, Node) and a in self.values and b in self.values):
            return False
        mine, theirs = self.values[a], self.values[b]
        from_end = len(a.shape) - mine.axis
        if from_end != len(b.shape) - theirs.axis or mine.held.width != theirs.held.width:
            return False
        apart = mine.held.root() is not theirs.held.root()
        mine.held.join(theirs.held)
        if apart and node.name in ("add", "sub"):  # a stream that several products write
            mine.held.root().whole = True
        self.values[node] = _Channels(mine.held, node.ndim - from_end)
        return True


def _with_blocks(groups: Sequence[Group], passed: Passed) -> list[Group]:
    """Each group with the smallest residual block around it, of several in one block the widest."""
    residual = {}
    for path, calls in passed.items():
        if path and len(calls) == 1:
            given, made = calls[0]
            x = given[0] if len(given) == 1 else None
            adds = isinstance(made, Node) and made.name == "add" and isinstance(x, Node) and x.shape == made.shape
            if adds and any(each is x for each in made.args[:2]) and made.kwargs.get("alpha", 1) == 1:
                residual[path] = True
    owner: dict[str, int] = {}
    for index, group in enumerate(groups):
        around = [path for path in residual if all(layer.startswith(f"{path}.") for layer in group.layers)]
        if around:
            block = max(around, key=len)
            if block not in owner or groups[owner[block]].width < group.width:
                owner[block] = index
    blocks = {index: block for block, index in owner.items()}
    return [replace(group, block=blocks.get(index, "")) for index, group in enumerate(groups)]
