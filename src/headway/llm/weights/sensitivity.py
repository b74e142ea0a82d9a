"""How much the loss really minds an error in each site, against what `calibration` estimates from H and G.

1/2 sum_o G_o (E H E^T)_oo treats outputs and tokens one by one. In truth errors of different outputs and tokens meet:
an error of a query moves one softmax many times over, those of a pixel's neighbours average out. The exact curvature of
the loss along E is the second moment of the score in its direction,

    loss(E) = 1/2 mean over samples of (sum over tokens of g_t . E x_t)^2,     g: gradients for drawn labels,

one number per sample and site from one pass forward and back. It is taken for one reference error per site (3 bits
with error feedback), because its ratio to the estimate hardly depends on bits or group size (correlation 0.90 between
3 and 4 bits on SmolLM2), and multiplied into G.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.model import Model
from headway.core.system import Context
from headway.core.weight import F32
from headway.llm.weights import calibration
from headway.llm.weights.quantizers_gptq import gptq
from headway.training.sampled_loss import sampled_loss

SAMPLES = 64
"""Scores per site. Mixed recipes of SmolLM2 lost 0.005 to 0.01 nats more with 32 (paired, significant)."""
SEQUENCE = 128
"""Tokens of one sample of a language model."""
PRIOR = 8
"""Samples that the ratio common to a role (`layers.*.attention.q`) is worth."""
REFERENCE = (3, 64)
"""Bits and group size of the reference error."""
VERSION = 1


def gradient_moments(model: Model, context: Context) -> dict[str, F32]:
    """Site -> G, float32 (out,), such that 1/2 sum_o G_o (E H E^T)_oo is the loss that an error E adds.

    Of every site the calibration inputs reach; cached by content. The unit is the mean loss of a token or item.
    """
    raw = calibration.gradient_moments(model, context)
    if not calibration.felt_by_the_loss(model, context):
        return raw
    if context.cache is None:
        found = corrections(model, context, raw)
    else:
        model = context.original or model
        parts = ["sensitivity", VERSION, SAMPLES, SEQUENCE, PRIOR, REFERENCE, calibration.key_of(model, context)]
        found = context.cache.json(context.cache.key(*parts), lambda: corrections(model, context, raw))
    return {name: g * np.float32(found[name]) for name, g in raw.items()}


def corrections(model: Model, context: Context, g: Mapping[str, F32]) -> dict[str, float]:
    """Site -> curvature along the reference error over what G and H make of it."""
    model = context.original or model
    sites = [site for site in model.sites() if site.name in g]
    h = calibration.hessians(model, context, sites)
    errors: dict[str, F32] = {}
    estimates: dict[str, float] = {}
    bits, group = REFERENCE
    for site in context.progress.track(sites, "reference errors"):
        w = model.weight(site.name).dequantize()
        error = gptq(w, h[site.name], bits, group, rounds=0).dequantize() - w
        errors[site.name] = error
        estimates[site.name] = 0.5 * float(g[site.name] @ np.einsum("oi,oi->o", error @ h[site.name], error))
    felt, samples = curvature(model, context, errors)
    return shrunk(estimates, felt, samples)


def shrunk(estimates: Mapping[str, float], felt: Mapping[str, float], samples: int) -> dict[str, float]:
    """Ratios felt / estimate, drawn towards that of the sites of the same role by `PRIOR` samples."""
    roles: dict[str, list[str]] = {}
    for name in estimates:
        roles.setdefault(".".join("*" if part.isdigit() else part for part in name.split(".")), []).append(name)
    found: dict[str, float] = {}
    for names in roles.values():
        total = sum(estimates[name] for name in names)
        common = sum(felt[name] for name in names) / total if total > 0 else 1.0
        for name in names:
            own = felt[name] / estimates[name] if estimates[name] > 0 else common
            found[name] = (samples * own + PRIOR * common) / (samples + PRIOR)
    return found


def curvature(model: Model, context: Context, errors: Mapping[str, F32]) -> tuple[dict[str, float], int]:
    """Site -> 1/2 second moment of the score along its error, per token or item; and the number of samples."""
    module = model.module()
    generator = torch.Generator().manual_seed(context.seed + 1)
    directions = {name: torch.from_numpy(error) for name, error in errors.items()}
    squares = dict.fromkeys(errors, 0.0)
    samples, units = 0, 0

    def watch(name: str, batch: int) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # nothing before it needs a gradient: the graph starts here
                output = output.detach().requires_grad_(True).clone()
            moved = _moved(layer, given[0].detach(), directions[name])

            def feel(gradient: Tensor) -> None:
                score = gradient.float() * moved.float()
                if isinstance(layer, nn.Conv2d) and score.dim() == 3:  # one image, without an axis that counts them
                    score = score[None]
                score = score.reshape(len(score), -1).sum(1)
                # A layer that runs on rows of many items has its rows gathered again, item by item.
                score = score.reshape(batch, -1).sum(1) if len(score) % batch == 0 else score.sum(0, keepdim=True)
                squares[name] += float(score.double().square().sum())

            output.register_hook(feel)  # type: ignore[no-untyped-call]
            return output

        return hook

    with calibration.gradients_of_outputs(module):
        pieces = _samples(context.calibration, model.task)
        for arguments, batch in context.progress.track(pieces, "how much the loss minds"):
            layers = {name: module.get_submodule(name) for name in errors}
            hooks = [layer.register_forward_hook(watch(name, batch)) for name, layer in layers.items()]
            try:
                loss, rows = sampled_loss(module(*arguments), model.task, generator)
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
            finally:
                for handle in hooks:
                    handle.remove()
            samples += batch
            units += rows
    return {name: square / (2 * units) for name, square in squares.items()}, samples


def _moved(layer: nn.Module, x: Tensor, error: Tensor) -> Tensor:
    """What an error of its matrix adds to a layer's output."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, error[:, :, None, None].to(x.dtype), stride=layer.stride)
    return F.linear(x, error.to(x.dtype))


def _samples(calibration_inputs: Sequence[tuple[Any, ...]], task: str) -> list[tuple[tuple[Any, ...], int]]:
    """Inputs and the items in each, until there are `SAMPLES` items. Token sequences are cut to `SEQUENCE`."""
    found: list[tuple[tuple[Any, ...], int]] = []
    items = 0
    for arguments in calibration_inputs:
        if items >= SAMPLES:
            break
        first = arguments[0]
        if task == "language" and first.shape[-1] % SEQUENCE == 0:
            for part in first.reshape(-1, SEQUENCE).split(4):
                found.append(((part,), len(part)))
                items += len(part)
        else:
            batch = len(first) if isinstance(first, Tensor) and first.dim() > 0 else 1
            found.append((arguments, batch))
            items += batch
    return found
