"""Attention: two products of images with a softmax between them become one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from headway.vision.runtime.capture import Node, NotNative
from headway.vision.runtime.registers import Registers
from headway.vision.runtime.steps import Number, Step
from headway.vision.runtime.values import SAME, Held, Known, Scores, argument, meta, turned


@dataclass(frozen=True)
class _Rows:
    register: int
    heads: int
    rows: int
    dim: int
    first: int
    next: int


def matmul(lowering: Registers, a: Any, b: Any) -> Any:
    if isinstance(b, Scores):
        # values^T scores^T: what comes of it is turned as well.
        if not (b.soft and b.turned):
            raise NotNative("a product of scores")
        made = _attend(lowering, replace(b, turned=False), turned(lowering.held(a)))
        return turned(made)
    left, right = lowering.held(a), lowering.held(b)
    if left.view.shape[-1] < 1 or left.view.stride(-1) != 1 or right.view.stride(-2) != 1:
        raise NotNative("a product of images")
    return Scores(left, turned(right))


def scaled_dot_product(lowering: Registers, node: Node, q: Any, k: Any, v: Any) -> Held:
    mask = argument(node, 3, "attn_mask")
    bias = None if mask is None else lowering.values.get(mask)
    if argument(node, 5, "is_causal", False) or not (bias is None or isinstance(bias, Known)):
        raise NotNative("attention with a mask that is no constant")
    queries, scale = lowering.held(q), node.kwargs.get("scale")
    factor = queries.view.shape[-1] ** -0.5 if scale is None else float(scale)
    return _attend(lowering, Scores(queries, lowering.held(k), factor, bias, soft=True), lowering.held(v))


def of_scores(lowering: Registers, scores: Scores, node: Node) -> Any:
    """Scores may be scaled, biased, put through a softmax, turned, and multiplied by values; nothing else."""
    name = node.name
    other = node.args[1] if len(node.args) > 1 else None
    value = lowering.values.get(other) if isinstance(other, Node) else other
    if name in ("mul", "div") and isinstance(value, (int, float)) and scores.bias is None and not scores.soft:
        return replace(scores, factor=scores.factor * (value if name == "mul" else 1.0 / value))
    if name == "add" and isinstance(value, Known) and scores.bias is None and not scores.soft:
        return replace(scores, bias=value)
    if name == "softmax" and not scores.turned and argument(node, 1, "dim") in (-1, node.ndim - 1):
        return replace(scores, soft=True)
    if name in SAME:
        return scores
    if node.is_view and scores.soft:
        square = torch.empty_strided(node.shape, [0] * (node.ndim - 2) + [1, 10**6], device="meta")
        if node.function(square.transpose(-2, -1), *node.args[1:], **node.kwargs).stride()[-2:] == (1, 10**6):
            return replace(scores, turned=not scores.turned)
    if name == "matmul" and scores.soft and not scores.turned and isinstance(value, Held):
        return _attend(lowering, scores, value)
    raise NotNative(f"{name} of attention scores")


def _attend(lowering: Registers, scores: Scores, values: Held) -> Held:
    """values: (..., keys, channels); the result: (..., queries, channels)."""
    parts = [_rows_of_heads(lowering, held) for held in (scores.queries, scores.keys, values)]
    heads = max(part.heads for part in parts)
    if any(part.heads not in (1, heads) for part in parts):
        raise NotNative("heads that share keys")
    queries, keys, mixed = parts
    height, width, _ = lowering.registers[queries.register]
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
    to = lowering.register(height, width, heads * mixed.dim)
    lowering.steps.append(
        Step("attention", [part.register for part in parts], to, settings, numbers=cast("dict[str, Number]", numbers))
    )
    ld, shape = lowering.ld(to), list(values.view.shape)
    shape[-2] = queries.rows
    stride = [ld] * len(shape)
    stride[-1], stride[-2] = 1, ld
    if len(shape) > 2:
        stride[-3] = mixed.dim
    return Held(to, meta(shape, stride))


def _rows_of_heads(lowering: Registers, held: Held) -> _Rows:
    """(..., heads, rows, channels), as it lies in its register."""
    view, ld = held.view, lowering.ld(held.register)
    height, width, _ = lowering.registers[held.register]
    heads = view.shape[-3] if view.ndim > 2 else 1
    fits = view.stride(-1) == 1 and (view.shape[-2] == 1 or view.stride(-2) == ld) and view.shape[-2] == height * width
    if not fits or any(size != 1 for size in view.shape[:-3]) or view.storage_offset() >= ld:
        raise NotNative("attention over rows that do not lie in order")
    step = view.stride(-3) if heads > 1 else 0
    if step >= ld:
        raise NotNative("attention over rows that do not lie in order")
    return _Rows(held.register, heads, view.shape[-2], view.shape[-1], view.storage_offset(), step)
