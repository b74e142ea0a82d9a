"""What calibration inputs tell of every site: which errors of its matrix the model's loss would feel.

For a site with inputs x_t and gradients g_t of the loss at its outputs (t: tokens, pixels ...), per calibration input

    P = sum of c_t x_t x_t^T               what its products see; c_t caps a token's squared norm at CAP x the median
    F = sum of a_t x_t x_t^T               a_t = mean of g_t^2 over outputs: what the loss sees (a Fisher matrix)
    H = mean tr F (PLAIN P / tr P + (1 - PLAIN) F / tr F), means over tokens
    G = mean of g_t^2 over tokens, per output, over mean a_t

and 1/2 sum_o G_o (E H E^T)_oo estimates what an error E of the matrix adds to the loss of a token. F alone knows
which tokens matter but is noisy; P alone is ruled by a few tokens (the first of a sequence, above all) with up to
3e5 x the squared norm of the rest, hence the cap, which in turn forgets that errors there are felt everywhere. Sites
fed by one tensor (q, k, v) share H, their outputs counted together. All of it comes from the readable float module, so
that every system and every recipe shares one calibration. Of a network that gradients cannot come through (it works in
place on what they need, or leaves torch) there is P alone, and G is 1.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.files import sha256_of
from headway.core.jsontext import canonical_json
from headway.core.model import Model, Site
from headway.core.module_workload import digest
from headway.core.progress import Progress
from headway.core.system import Context
from headway.core.weight import F32
from headway.hardware.machine import read_machine
from headway.hardware.probe import is_quiet
from headway.training.sampled_loss import sampled_loss

CAP = 4.0
PLAIN = 0.8
"""Chosen on SmolLM2 at 3 bits: ln perplexity ratio 0.21 at 1, 0.18 to 0.20 from 0.6 to 0.95 (noise 0.01)."""
VERSION = 3
_WITHOUT = "without gradients"
"""Name of what says why there are none."""
_PANEL = 384
"""Columns of H updated together: only blocks on and above the diagonal are computed."""


def hessians(model: Model, context: Context, sites: Sequence[Site]) -> dict[str, F32]:
    """Site -> H, float32 (in, in); sites fed by the same tensor share one array. Cached by content.

    Where a recipe is being applied, H is that of the model before its first step, so that every step shares it.

    Raises `BadInput` where the context has no calibration inputs, or a site was not reached by them.
    """
    found = _moments(model, context)
    for site in sites:
        if f"owner {site.name}" not in found:
            raise BadInput(f"the calibration inputs never reach {site.name}", "give other inputs, or skip that site")
    return {site.name: found[f"H {bytes(found[f'owner {site.name}']).decode()}"] for site in sites}


def gradient_moments(model: Model, context: Context) -> dict[str, F32]:
    """Site -> G, float32 (out,), of every site the calibration inputs reach. Cached with H. See also `sensitivity`."""
    found = _moments(model, context)
    return {key.removeprefix("G "): value for key, value in found.items() if key.startswith("G ")}


def _moments(model: Model, context: Context) -> dict[str, Any]:
    if not context.calibration:
        raise BadInput("no calibration inputs", "give text with --text or data with --data")
    model = context.original or model
    key = sha256_of(canonical_json(["moments", *key_of(model, context)]))
    if key not in context.held:
        made = partial(collect, model, context)
        cache = context.cache
        context.held[key] = made() if cache is None else cache.arrays(cache.key("moments", key), made)
    why = context.held[key].get(_WITHOUT)
    note = "" if why is None else f"calibrated without gradients, on what the products see alone: {bytes(why).decode()}"
    if note and note not in context.notes:
        context.notes.append(note)
    return cast(dict[str, Any], context.held[key])


def key_of(model: Model, context: Context) -> list[Any]:
    """What a calibration depends on, for keys of the step cache."""
    model = context.original or model
    products = "bf16" if _has_bf16() else "f32"
    inputs = digest(list(context.calibration or ()))
    return [VERSION, model.fingerprint(), CAP, PLAIN, products, context.seed, inputs]


def felt_by_the_loss(model: Model, context: Context) -> bool:
    """Whether gradients came through the network, so that G is known."""
    return _WITHOUT not in _moments(model, context)


def collect(model: Model, context: Context) -> dict[str, Any]:
    """`H <site>` for one site of each group that shares its input, `owner <site>` (whose H it is) and `G <site>`.

    Inputs go through one at a time, sequences of a language model too; memory holds one matrix of every group, and
    one input's activations. Where gradients cannot be had, `_WITHOUT` says why. Raises `BadInput` for inputs on which
    the network itself fails.
    """
    try:
        return _collect(model, context)
    except (RuntimeError, TypeError, ValueError, BadInput) as error:
        why = " ".join(str(error).split())[:200]
        return {**_collect_plain(model, context), _WITHOUT: np.frombuffer(why.encode(), np.uint8).copy()}


def _collect(model: Model, context: Context) -> dict[str, Any]:
    module = model.module()
    groups = _Groups(module, _site_names(model, module))
    generator = torch.Generator().manual_seed(context.seed)
    with groups.watching(), gradients_of_outputs(module):
        for arguments in _tracked(model, context):
            loss, _ = sampled_loss(module(*arguments), model.task, generator)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            groups.close()
    return groups.arrays()


def _collect_plain(model: Model, context: Context) -> dict[str, Any]:
    """Without gradients, in the network's own type: all that is left that could fail is the network."""
    module = model.module()
    groups = _Groups(module, _site_names(model, module))
    with groups.watching(), torch.no_grad():
        for arguments in _tracked(model, context):
            try:
                module(*arguments)
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise BadInput(
                    f"{model.name} does not run on a calibration input: {reason}", "give inputs that fit"
                ) from error
            groups.close()
    return groups.arrays()


def _tracked(model: Model, context: Context) -> Iterator[tuple[Any, ...]]:
    pieces = [piece for arguments in context.calibration for piece in _pieces(arguments, model.task)]
    yield from context.progress.track(pieces, "calibrating")


def seconds_of_input(model: Model, context: Context) -> float:
    """What one of the calibration inputs takes `collect`; timed on a part of the first.

    Once for each machine: but what is timed beside other work is not kept.
    """
    first = next(iter(context.calibration))
    pieces = _pieces(first, model.task)

    def timed() -> float:
        model.module()
        start = time.perf_counter()
        collect(model, replace(context, calibration=pieces[:1], progress=Progress()))
        return (time.perf_counter() - start) * len(pieces)

    if context.cache is None:
        return timed()
    here = [context.target.fingerprint, context.threads]
    key = context.cache.key("calibration seconds", VERSION, model.fingerprint(), digest(first), here)
    if not context.cache.holds(key) and not is_quiet(read_machine()):
        return timed()
    return float(context.cache.json(key, timed))


@contextmanager
def gradients_of_outputs(module: nn.Module) -> Iterator[None]:
    """Gradients of what flows through a module, none of its parameters; products in the fastest float type."""
    parameters = list(module.parameters())
    needed = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with fast_products(), torch.enable_grad():
            yield
    finally:
        for parameter, need in zip(parameters, needed, strict=True):
            parameter.requires_grad_(need)


def _pieces(arguments: tuple[Any, ...], task: str) -> list[tuple[Any, ...]]:
    """A batch of token sequences one by one: their activations need not be held together."""
    if task == "language" and all(isinstance(a, Tensor) for a in arguments):
        return list(zip(*(a.split(1) for a in arguments), strict=True))
    return [arguments]


@dataclass
class _Call:
    """One tensor read by the sites of a group: its rows (tokens, in), and sum of g^2 over their outputs, per token."""

    rows: Tensor
    weights: Tensor | None = None


@dataclass
class _Group:
    """Sites that read one tensor, and the sums over tokens so far."""

    total: Tensor
    """Sum over inputs of tokens x (PLAIN P / tr P + (1 - PLAIN) F / tr F), above the diagonal."""
    tokens: int = 0
    seen: float = 0.0
    """Sum of tr P."""
    felt: float = 0.0
    """Sum of tr F, with a_t summed over outputs."""
    gradient: float = 0.0
    """Sum of a_t, summed over outputs."""
    outputs: dict[str, int] = field(default_factory=dict)
    """Member -> out_features."""
    squares: dict[str, Tensor] = field(default_factory=dict)
    """Member -> sum over tokens of g^2, (out,)."""
    calls: list[_Call] = field(default_factory=list)

    def spend(self, call: _Call) -> None:
        """Add one input, whose gradients have come."""
        norms = call.rows.square().sum(1)
        plain = (CAP * norms.median() / norms.clamp_min(1e-30)).clamp(max=1.0)
        seen = float(plain @ norms)
        felt = 0.0 if call.weights is None else float(call.weights @ norms)
        if seen <= 0:
            return
        weights = plain * (1 / seen)
        if call.weights is not None and felt > 0:
            weights = weights * PLAIN + call.weights * ((1 - PLAIN) / felt)
            self.gradient += float(call.weights.sum())
        _add(self.total, call.rows, weights * len(norms))
        self.tokens += len(norms)
        self.seen += seen
        self.felt += felt

    def h(self) -> F32:
        """In units of the loss where gradients came through, else mean c_t x_t x_t^T."""
        size = self.felt / sum(self.outputs.values()) if self.felt > 0 else self.seen
        return (_whole(self.total) * (size / max(self.tokens, 1) ** 2)).numpy()


class _Groups:
    """Watches the sites of a module through forward and backward passes."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self._layers = {name: module.get_submodule(name) for name in names}
        self._groups: dict[str, _Group] = {}
        self._owner: dict[str, str] = {}
        self._fed: dict[int, tuple[weakref.ref[Tensor], str, _Call]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            call = self._see(name, layer, given[0])
            if not torch.is_grad_enabled():
                return output
            if not output.requires_grad:  # nothing before it needs a gradient: the graph starts here
                output = output.detach().requires_grad_(True).clone()
            output.register_hook(lambda gradient: self._feel(name, layer, call, gradient))  # type: ignore[no-untyped-call]
            return output

        return hook

    def _see(self, name: str, layer: nn.Module, x: Tensor) -> _Call:
        reference, first, call = self._fed.get(id(x), (None, name, None))
        shared = reference is not None and reference() is x
        owner = self._owner.setdefault(name, first if shared else name)
        if owner not in self._groups:
            width = x.shape[-3] if isinstance(layer, nn.Conv2d) else x.shape[-1]
            self._groups[owner] = _Group(torch.zeros(width, width))
        group = self._groups[owner]
        group.outputs[name] = int(cast(Tensor, layer.weight).shape[0])
        if shared and call is not None and first == owner:
            return call
        call = _Call(_rows(_read(x.detach(), layer), layer))
        if owner == name:
            self._fed[id(x)] = (weakref.ref(x), name, call)
            group.calls.append(call)
        return call

    def _feel(self, name: str, layer: nn.Module, call: _Call, gradient: Tensor) -> None:
        squares = _rows(gradient.detach(), layer).square()
        group = self._groups[self._owner[name]]
        group.squares[name] = group.squares.get(name, torch.zeros(squares.shape[1])) + squares.sum(0)
        total = squares.sum(1)
        call.weights = total if call.weights is None else call.weights + total

    def close(self) -> None:
        """End of one input: its activations are let go."""
        for group in self._groups.values():
            for call in group.calls:
                group.spend(call)
            group.calls.clear()
        self._fed.clear()

    def arrays(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for owner, group in self._groups.items():
            found[f"H {owner}"] = group.h()
            mean = group.gradient / sum(group.outputs.values())
            for name, width in group.outputs.items():
                found[f"owner {name}"] = np.frombuffer(owner.encode(), np.uint8).copy()
                known = mean > 0 and name in group.squares
                found[f"G {name}"] = (group.squares[name] / mean if known else torch.ones(width)).numpy()
        return found


def _add(total: Tensor, rows: Tensor, weights: Tensor) -> None:
    """total += sum over t of weights_t rows_t rows_t^T, on and above the diagonal."""
    scaled = rows * weights[:, None]
    for at in range(0, rows.shape[1], _PANEL):
        total[at : at + _PANEL, at:].addmm_(scaled[:, at : at + _PANEL].T, rows[:, at:])


def _whole(upper: Tensor) -> Tensor:
    upper = torch.triu(upper)
    return upper + torch.triu(upper, 1).T


def _read(x: Tensor, layer: nn.Module) -> Tensor:
    """The part of an input that a layer reads: a 1x1 convolution with a stride skips pixels."""
    if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1:
        return x[..., :: layer.stride[0], :: layer.stride[1]]
    return x


def _rows(x: Tensor, layer: nn.Module) -> Tensor:
    """Inputs or gradients of a layer as (rows, features): a convolution's channels are its features."""
    if isinstance(layer, nn.Conv2d):
        x = x.movedim(-3, -1)
    return x.reshape(-1, x.shape[-1]).float()


def _site_names(model: Model, module: nn.Module) -> list[str]:
    """Sites that are layers of the readable module (an embedding looks rows up: it has no H)."""
    layers = dict(module.named_modules())
    return [site.name for site in model.sites() if isinstance(layers.get(site.name), nn.Linear | nn.Conv2d)]


def fast_products() -> AbstractContextManager[Any]:
    """bfloat16 products where this CPU has them: elsewhere torch emulates them, a hundred times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16) if _has_bf16() else nullcontext()


@cache
def _has_bf16() -> bool:
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(read_machine().flags)
