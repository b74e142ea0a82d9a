"""Channels cut from a network: which ones matter, what is left mended in closed form, and the smaller network.

Importance of a channel is what the network's answer would feel without it, to first order (Theis et al. 2018, arXiv
1801.05787; Molchanov et al. 2019, arXiv 1906.10771): with s = sum over pixels of (activation x gradient of the log
probability of a class drawn from the answer), the mean of s^2 over inputs.

Mending: the channels x that are cut are predicted from those kept, x ~ A x_K + b, by least squares over the
calibration inputs, and what reads them takes A into its weights, and b into its bias or the norm behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from headway.core.interrupts import check
from headway.core.module_cut import Cut, beneath
from headway.core.module_tree import copy_tree
from headway.training.sampled_loss import sampled_loss
from headway.vision.compress.channels import Group

Kept = Mapping[str, Tensor]
"""Name of a group -> the channels that it keeps, in order; none: its block is left out."""
RIDGE = 0.03
"""Of the mean variance of a channel, added to all of them."""


@dataclass(frozen=True)
class Moments:
    """Over the inputs, float64: importance (c,) by group; mean (c,) and covariance (c, c) of what each reader reads."""

    importance: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    covariance: Mapping[str, Tensor]


def moments_of(module: nn.Module, groups: Sequence[Group], batches: Sequence[Tensor], task: str, seed: int) -> Moments:
    """Of these groups; `batches`: (n, channels, height, width) each."""
    module = copy_tree(module).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    importance = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in groups}
    sums = {reader: _Sums(group.width) for group in groups for reader in group.readers}
    masks: dict[str, Tensor] = {}

    def meet(name: str, reader: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = given[0]
            channels = x.ndim - (3 if isinstance(layer, nn.Conv2d) else 1)
            sums[reader].add(x.detach().movedim(channels, -1))
            shape = [x.shape[0] if axis == 0 else -1 if axis == channels else 1 for axis in range(x.ndim)]
            return (x * masks[name].view(shape), *given[1:])

        return hook

    for group in groups:
        for reader in group.readers:
            module.get_submodule(reader).register_forward_pre_hook(meet(group.name, reader))
    for batch in batches:
        check()
        for group in groups:
            masks[group.name] = torch.ones(len(batch), group.width, requires_grad=True)
        loss, _ = sampled_loss(module(batch), task, generator)
        felt = torch.autograd.grad(loss, list(masks.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(masks, felt, strict=True):
            importance[name] += gradient.double().square().sum(0)
    means = {reader: each.total / each.rows for reader, each in sums.items()}
    covariances = {r: each.products / each.rows - means[r].outer(means[r]) for r, each in sums.items()}
    return Moments(importance, means, covariances)


class _Sums:
    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """x: (..., c)."""
        rows = x.reshape(-1, x.shape[-1])
        self.total += rows.sum(0, dtype=torch.float64)
        self.products += (rows.T @ rows).double()
        self.rows += len(rows)


def predicted(mean: Tensor, covariance: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """(A (c, k), b (c,)): all channels from those kept."""
    inner = covariance[kept][:, kept].clone()
    inner.diagonal().add_(RIDGE * float(covariance.diagonal().mean()) + 1e-12)
    a = torch.linalg.solve(inner, covariance[kept]).T
    a[kept] = torch.eye(len(kept), dtype=a.dtype)  # what is there is not predicted
    return a, mean - a @ mean[kept]


def cut(
    module: nn.Module, groups: Sequence[Group], kept: Kept, moments: Moments | None = None
) -> tuple[nn.Module, Cut]:
    """A copy of `module` with those channels alone, and its sizes; groups that `kept` lacks stay whole.

    moments: of the groups, to mend what reads them; None: what is cut is missing.
    """
    left_out = [group.block for group in groups if group.block and not len(kept.get(group.name, [1]))]
    inside: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    mends: dict[str, tuple[Tensor, Tensor]] = {}
    shifted: dict[str, str] = {}
    for group in groups:
        if group.name not in kept or (group.block and beneath(group.block, left_out)):
            continue
        inside |= dict.fromkeys((*group.readers, *group.through), kept[group.name])
        out |= dict.fromkeys((*group.makers, *group.through), kept[group.name])
        if moments is not None and len(kept[group.name]) < group.width:
            for reader in group.readers:
                held = moments.mean[reader], moments.covariance[reader]
                mends[reader] = predicted(*held, kept[group.name])
            shifted |= group.norms
    paths = [path for path in dict.fromkeys([*inside, *out]) if not beneath(path, left_out)]
    made: dict[str, dict[str, Tensor]] = {path: _values(module.get_submodule(path)) for path in paths}
    for path, (a, b) in mends.items():
        if path in made:
            _mend(made, path, a, b, shifted.get(path), module)
    for path in paths:
        layer, values = module.get_submodule(path), made[path]
        if path in inside and path not in mends and not _through(layer):
            values["weight"] = values["weight"][:, inside[path]]
        if path in out:
            made[path] = {name: held[out[path]] if held.dim() else held for name, held in values.items()}
    sizes = {path: _sizes(module.get_submodule(path), made[path]["weight"]) for path in paths}
    found = Cut(sizes, tuple(left_out))
    smaller = found.of(module)
    for path, values in made.items():
        layer = smaller.get_submodule(path)
        for name, value in values.items():
            old = getattr(layer, name)
            value = value.to(old.dtype).contiguous()
            setattr(layer, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
    return smaller.eval(), found


def _values(layer: nn.Module) -> dict[str, Tensor]:
    held = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
    return {name: value.detach().clone() for name, value in held.items()}


def _through(layer: nn.Module) -> bool:
    """Whether a layer has as many channels in as out."""
    return not isinstance(layer, nn.Conv2d | nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups > 1)


def _sizes(layer: nn.Module, weight: Tensor) -> tuple[int, int]:
    out = len(weight)
    return (out, out) if _through(layer) else (int(weight.shape[1]), out)


def _mend(
    made: dict[str, dict[str, Tensor]], path: str, a: Tensor, b: Tensor, norm: str | None, module: nn.Module
) -> None:
    """Let a product take what is predicted of the channels that are cut; b where something can hold it."""
    weight = made[path]["weight"].double()
    made[path]["weight"] = torch.einsum("oc...,ck->ok...", weight, a)
    shift = torch.einsum("oc...,c->o...", weight, b).reshape(len(weight), -1).sum(1)
    if "bias" in made[path]:
        made[path]["bias"] = made[path]["bias"].double() + shift
    elif norm is not None:
        layer = cast(nn.BatchNorm2d, module.get_submodule(norm))
        values = made.setdefault(norm, _values(layer))
        values["running_mean"] = values["running_mean"].double() - shift
