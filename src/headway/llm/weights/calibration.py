"""What calibration inputs tell of every site: second moments of its inputs, and of the gradients of its outputs.

    H = mean over tokens of x x^T          (in, in)    what a product with this site sees
    G = mean over tokens of g^2            (out,)      g = gradient of the model's loss by this site's output

Both come from the readable float module, so that every system and every recipe shares one calibration. Tokens whose
squared norm exceeds CAP x the median are scaled down to it: a few tokens (the first of a sequence, above all) carry
up to 3e5 x the norm of the rest and would otherwise decide H alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.files import sha256_of
from headway.core.model import Model, Site
from headway.core.system import Context
from headway.core.weight import F32

CAP = 4.0
GRADIENT_INPUTS = 2
"""Calibration inputs that are also sent backwards."""
_PANEL = 384
"""Columns of H updated together: only blocks on and above the diagonal are computed."""


def hessians(model: Model, context: Context, sites: Sequence[Site]) -> dict[str, F32]:
    """Site -> H, float32; sites fed by the same tensor (q, k, v) share one array. Cached by content.

    Where a recipe is being applied, H is that of the model before its first step, so that every step shares it.

    Raises `BadInput` where the context has no calibration inputs.
    """
    model = context.original or model
    inputs = _inputs(context)

    def build() -> dict[str, F32]:
        return collect(model, inputs, context)

    found = _cached("hessians", model, context, build)
    owner = {site.name: str(np.asarray(found[f"owner {site.name}"]).tobytes().decode()) for site in sites}
    return {name: found[f"H {of}"] for name, of in owner.items()}


def gradient_moments(model: Model, context: Context) -> dict[str, F32]:
    """Site -> G, float32 (out,). Cached by content.

    The loss of a token is -ln p of a label drawn from the model's own distribution (language, classification): its
    curvature is the Fisher matrix. For any other output it is a random projection over the output's norm.
    """
    inputs = _inputs(context)[:GRADIENT_INPUTS]
    return _cached("gradients", model, context, lambda: _gradients(model, inputs, context))


def collect(model: Model, inputs: Sequence[tuple[Any, ...]], context: Context) -> dict[str, F32]:
    """`H <site>` for one site of each group that shares its input, and `owner <site>` for all: whose H it is."""
    module = model.module()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    owners: dict[str, str] = {}
    fed: dict[int, tuple[Tensor, str]] = {}

    def see(name: str, x: Tensor) -> None:
        if id(x) in fed:
            owners.setdefault(name, fed[id(x)][1])
            return
        fed[id(x)] = (x, name)
        if owners.setdefault(name, name) != name:
            return
        rows = _capped(_rows(x, module.get_submodule(name)))
        total = sums.setdefault(name, torch.zeros(rows.shape[1], rows.shape[1]))
        for at in range(0, rows.shape[1], _PANEL):
            total[at : at + _PANEL, at:].addmm_(rows[:, at : at + _PANEL].T, rows[:, at:])
        counts[name] = counts.get(name, 0) + len(rows)

    with torch.no_grad(), _watching(module, _site_names(model, module), see):
        for arguments in context.progress.track(inputs, "calibrating"):
            fed.clear()
            module(*arguments)
    found: dict[str, Any] = {
        f"owner {name}": np.frombuffer(owner.encode(), np.uint8).copy() for name, owner in owners.items()
    }
    for name, total in sums.items():
        upper = torch.triu(total) / counts[name]
        found[f"H {name}"] = (upper + torch.triu(upper, 1).T).numpy()
    return found


def _gradients(model: Model, inputs: Sequence[tuple[Any, ...]], context: Context) -> dict[str, F32]:
    module = model.module()
    names = _site_names(model, module)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    generator = torch.Generator().manual_seed(context.seed)

    def backward(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _given: Any, grads: tuple[Tensor, ...]) -> None:
            rows = _rows(grads[0], module.get_submodule(name))
            sums[name] = sums.get(name, torch.zeros(rows.shape[1])) + rows.square().sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    hooks = [module.get_submodule(name).register_full_backward_hook(backward(name)) for name in names]
    try:
        with torch.enable_grad():
            # Vectors and the first matrix are enough for every later output to be in the graph; no other matrix
            # pays for a gradient of its own.
            first = module.get_submodule(names[0]).weight if names else None
            for parameter in module.parameters():
                parameter.requires_grad_(parameter.dim() < 2 or parameter is first)
            for arguments in context.progress.track(inputs, "gradients of the calibration inputs"):
                sampled_loss(module(*arguments), model.task, generator).backward()
                module.zero_grad(set_to_none=True)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / counts[name]).numpy() for name, total in sums.items()}


def sampled_loss(output: Any, task: str, generator: torch.Generator) -> Tensor:
    """A scalar whose gradient has the curvature of the task's loss as its second moment (see `gradient_moments`)."""
    from headway.core.module_workload import first_tensor

    values = first_tensor(output)
    if task in ("language", "classification"):
        rows = values.reshape(-1, values.shape[-1])
        labels = torch.multinomial(rows.detach().softmax(-1), 1, generator=generator)[:, 0]
        return nn.functional.cross_entropy(rows, labels, reduction="sum")
    direction = torch.randn(values.shape, generator=generator)
    norms = values.detach().reshape(len(values), -1).norm(dim=1).clamp_min(1e-30)
    return (direction * values).reshape(len(values), -1).sum(1).div(norms).sum()


@contextmanager
def _watching(module: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook_for(name: str) -> Callable[..., None]:
        return lambda _module, given: see(name, given[0])

    hooks = [module.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(x: Tensor, layer: nn.Module) -> Tensor:
    """Inputs or gradients of a layer as (rows, features): a convolution's channels are its features."""
    if isinstance(layer, nn.Conv2d):
        x = x.movedim(1, -1)
    return x.reshape(-1, x.shape[-1]).float()


def _capped(rows: Tensor) -> Tensor:
    norms = rows.square().sum(1)
    limit = CAP * norms.median()
    return rows * (limit / norms.clamp_min(1e-30)).clamp(max=1.0).sqrt()[:, None]


def _site_names(model: Model, module: nn.Module) -> list[str]:
    """Sites that are layers of the readable module (an embedding looks rows up: it has no H)."""
    layers = dict(module.named_modules())
    return [site.name for site in model.sites() if isinstance(layers.get(site.name), nn.Linear | nn.Conv2d)]


def _inputs(context: Context) -> Sequence[tuple[Any, ...]]:
    if not context.calibration:
        raise BadInput("no calibration inputs", "give text with --text or data with --data")
    return context.calibration  # type: ignore[no-any-return]


def _cached(what: str, model: Model, context: Context, build: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    if context.cache is None:
        return dict(build())
    parts = [what, model.fingerprint(), CAP, context.seed, _digest(_inputs(context))]
    return context.cache.arrays(context.cache.key(*parts), build)


def _digest(inputs: Sequence[tuple[Any, ...]]) -> str:
    tensors = [a for arguments in inputs for a in arguments if isinstance(a, Tensor)]
    return sha256_of(*(tensor.contiguous().numpy().tobytes() for tensor in tensors))
