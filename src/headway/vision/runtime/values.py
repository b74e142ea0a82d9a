"""What a value of a captured module is while it is lowered: a view of a register, or something on its way to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headway.vision.runtime.capture import Node
from headway.vision.runtime.steps import Number

SAME = {"dropout", "contiguous", "clone", "detach", "dropout2d"}
"""Calls that give what they are given, in `eval`."""


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
class Apart:
    """What torch computes: it is in no register."""

    node: Node


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


@dataclass(frozen=True)
class Axes:
    channel: int | None
    """None: there is one channel."""
    channels: int
    first: int
    rows: tuple[int, ...]
    """Axes of more than one pixel."""


def spread_over(channels: int, number: Number) -> Number:
    """One value for each channel, where there may be one for all."""
    return lambda state: number(state).reshape(-1).expand(channels)


def argument(node: Node, at: int, name: str, otherwise: Any = None) -> Any:
    """An argument that may be given by its place or by its name."""
    return node.args[at] if len(node.args) > at else node.kwargs.get(name, otherwise)


def meta(size: Sequence[int], stride: Sequence[int]) -> Tensor:
    return torch.empty_strided(tuple(size), tuple(stride), device="meta")


def image(channels: int, height: int, width: int, ld: int) -> Tensor:
    return meta([1, channels, height, width], [height * width * ld, 1, width * ld, ld])


def turned(held: Held) -> Held:
    return Held(held.register, held.view.transpose(-2, -1))
