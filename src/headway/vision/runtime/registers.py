"""`Registers`: the registers and steps of a program under way, and where in them a value lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from headway.vision.runtime.capture import Node, NotNative
from headway.vision.runtime.program import BLOCK, Bring, Call, Shape
from headway.vision.runtime.steps import Affine, Number, Step
from headway.vision.runtime.values import Apart, Axes, Held, Known, image, meta


class Registers:
    """What is known so far: registers as (height, width, channels), the steps that make them, values of nodes."""

    def __init__(self) -> None:
        self.registers: list[Shape] = []
        self.steps: list[Step | Call | Bring] = []
        self.values: dict[Node, Any] = {}
        self.joined: dict[Node, Any] = {}
        """Nodes whose work a product does (`products.Chain`); the last of a chain makes the step."""
        self.bare: set[int] = set()
        """Registers that no step makes: their channels have no padding."""

    def register(self, height: int, width: int, channels: int) -> int:
        self.registers.append((height, width, channels))
        return len(self.registers) - 1

    def ld(self, register: int) -> int:
        """Floats from one pixel to the next."""
        channels = self.registers[register][2]
        return channels if register in self.bare else -(-channels // BLOCK) * BLOCK

    def given(self, height: int, width: int, channels: int) -> int:
        """A register that no step makes."""
        register = self.register(height, width, channels)
        self.bare.add(register)
        return register

    def bring(self, value: Apart, channel: int) -> Held:
        """What torch made, in a register: an image whose channels are its second axis, or rows of the last axis."""
        shape = value.node.shape
        if value.node.dtype != torch.float32 or len(shape) < 2:
            raise NotNative("what is no image of float32")
        if channel == 1 and len(shape) == 4:
            if shape[0] != 1:
                raise NotNative("parts of an image side by side")
            _, channels, height, width = shape
            held = Held(self.given(height, width, channels), image(channels, height, width, channels))
        else:
            held = Held(self.given(1, math.prod(shape[:-1]), shape[-1]), torch.empty(shape, device="meta"))
        self.steps.append(Bring(value.node, channel, held.register))
        return held

    def padded(self, register: int) -> int:
        """The same image with its channels padded."""
        if register not in self.bare or self.registers[register][2] % BLOCK == 0:
            return register
        to = self.register(*self.registers[register])
        self.steps.append(Step("take", [register], to, {"begin": 0}))
        return to

    def held(self, node: Any) -> Held:
        value = self.values.get(node) if isinstance(node, Node) else node
        if not isinstance(value, Held):
            raise NotNative(f"{node} is no image")
        return value

    def whole(self, held: Held) -> tuple[int, Axes]:
        """A register whose rows are this view's pixels and whose columns are its channels, and how they lie."""
        axes = self.axes(held)
        if axes.first == 0 and axes.channels == self.registers[held.register][2]:
            return held.register, axes
        height, width, _ = self.registers[held.register]
        to = self.register(height, width, axes.channels)
        self.steps.append(Step("take", [held.register], to, {"begin": axes.first}))
        return to, replace(axes, first=0)

    def axes(self, held: Held) -> Axes:
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
        return Axes(channel, 1 if channel is None else view.shape[channel], view.storage_offset(), tuple(rows))

    def like(self, held: Held, axes: Axes, register: int, channels: int) -> Held:
        """A register of as many pixels seen the way `held` sees its own."""
        ld, view = self.ld(register), held.view
        size, stride = list(view.shape), [ld] * view.ndim
        old = self.ld(held.register)
        for axis in axes.rows:
            stride[axis] = view.stride(axis) // old * ld
        channel = self.channel(held, axes)
        size[channel], stride[channel] = channels, 1
        return Held(register, meta(size, stride))

    @staticmethod
    def channel(held: Held, axes: Axes) -> int:
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

    def known(self, node: Any) -> Number:
        value = self.values.get(node)
        if not isinstance(value, Known):
            raise NotNative("a norm whose numbers depend on the image")
        return value.number

    def has_axes(self, held: Held) -> bool:
        try:
            self.axes(held)
        except NotNative:
            return False
        return True
