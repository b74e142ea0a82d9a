"""`predict_module`: what any torch module will cost once some of its layers hold other weights.

The module is traced once: the whole forward is timed, and so is every site in it, with the rows it multiplies. A
recipe's latency is then the traced one less the sites it replaces plus what their new form takes at those rows, so
that everything the recipe leaves alone stays as measured. All of it is quiet time (`bench.quiet`): a run of the
unmodified module, `Run(predict_module(trace, {}, ...).parts["latency_s"], seconds)`, teaches `correct.learn` how busy
the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headway.core.errors import BadInput
from headway.core.system import Costs
from headway.core.target import Target
from headway.hardware.bench import quiet
from headway.hardware.predict import Prediction
from headway.hardware.rates import Rates

if TYPE_CHECKING:
    import torch

MEASURED = 5
"""Timed forwards of a trace at the least."""


@dataclass(frozen=True)
class TracedSite:
    """A linear or 1x1-convolution layer as the traced forward met it."""

    name: str
    out_features: int
    in_features: int
    rows: int
    """Activation rows per call: tokens or pixels, the batch included."""
    calls: int
    seconds: float
    """Its calls' share of a hooked forward, in quiet seconds of a whole one."""
    nbytes: int
    """Bytes of its weight as traced."""

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features

    @property
    def macs(self) -> int:
        return self.rows * self.weights * self.calls


@dataclass(frozen=True)
class ModuleTrace:
    """One forward of a module, measured."""

    seconds: float
    """Quiet seconds of the whole forward, hooks off."""
    sites: Mapping[str, TracedSite]
    nbytes: int
    """Bytes of all parameters and buffers as traced."""


@dataclass(frozen=True)
class Replacement:
    """What a recipe puts into a site."""

    form: str
    nbytes: float
    resident_bytes: float | None = None
    """Memory it holds when that is not `nbytes`."""


def trace_module(
    module: torch.nn.Module, inputs: Sequence[Any], sites: Mapping[str, tuple[int, int]], time_s: float = 0.5
) -> ModuleTrace:
    """Time `module(*inputs)` and its sites, given as {module path: (out_features, in_features)}.

    Whole forwards and hooked forwards take turns. Raises `BadInput` for a site that the module does not have.
    """
    import torch

    begun: dict[str, float] = {}
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    rows: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in sites}
    hooked: list[float] = []
    whole: list[float] = []

    def before(name: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any) -> None:
            begun[name] = time.perf_counter()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any, _output: Any) -> None:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun[name]
            calls[name] = calls.get(name, 0) + 1
            x = args[0] if args else next(iter(kwargs.values()))
            rows[name] = int(x.numel()) // sites[name][1]

        return hook

    found = {}
    for name in sites:
        try:
            found[name] = module.get_submodule(name)
        except AttributeError:
            raise BadInput(f"the module has no site {name!r}", "take the names from its sites()") from None
    with torch.inference_mode():
        module(*inputs)
        end = time.perf_counter() + time_s
        while len(whole) < MEASURED or time.perf_counter() < end:
            begin = time.perf_counter()
            module(*inputs)
            whole.append(time.perf_counter() - begin)
            hooks = [site.register_forward_pre_hook(before(name)) for name, site in found.items()]
            hooks += [site.register_forward_hook(after(name), with_kwargs=True) for name, site in found.items()]
            spent.clear()
            calls.clear()
            begin = time.perf_counter()
            try:
                module(*inputs)
            finally:
                for hook in hooks:
                    hook.remove()
            hooked.append(time.perf_counter() - begin)
            for name in sites:
                seconds[name].append(spent.get(name, 0.0))
    limit = quiet(hooked)  # each site's share is read off the forwards that nobody interrupted
    undisturbed = [index for index, took in enumerate(hooked) if took <= limit]
    per_share = quiet(whole) / sum(hooked[index] for index in undisturbed)
    return ModuleTrace(
        seconds=quiet(whole),
        sites={
            name: TracedSite(
                name,
                *sites[name],
                rows=rows[name],
                calls=calls[name],
                seconds=sum(seconds[name][index] for index in undisturbed) * per_share,
                nbytes=_weight_bytes(site, sites[name]),
            )
            for name, site in found.items()
            if name in calls
        },
        nbytes=sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers())),
    )


def _weight_bytes(site: Any, shape: tuple[int, int]) -> int:
    weight = getattr(site, "weight", None)
    return 4 * shape[0] * shape[1] if weight is None else int(weight.numel() * weight.element_size())


SiteKey = tuple[str, int, int, int, float]
"""(form, out_features, in_features, rows, bits per weight rounded to 0.1)."""


@dataclass
class SiteTable:
    """Measured seconds of replaced layers, by what decides their cost; equal layers are measured once."""

    seconds: dict[SiteKey, float] = field(default_factory=dict)

    @staticmethod
    def key(site: TracedSite, replacement: Replacement) -> SiteKey:
        bits = round(8.0 * replacement.nbytes / site.weights, 1)
        return (replacement.form, site.out_features, site.in_features, site.rows, bits)

    def get(self, site: TracedSite, replacement: Replacement) -> float | None:
        """Seconds of one call; None when this kind was never measured."""
        return self.seconds.get(self.key(site, replacement))

    def measure(
        self, site: TracedSite, replacement: Replacement, call: Callable[[], object], time_s: float = 0.02
    ) -> float:
        """Time `call` (the replaced layer on an input of the traced shape) unless its kind is known already."""
        known = self.get(site, replacement)
        if known is not None:
            return known
        call()
        times: list[float] = []
        end = time.perf_counter() + time_s
        while len(times) < 5 or time.perf_counter() < end:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        found = self.seconds[self.key(site, replacement)] = quiet(times)
        return found


def predict_module(
    trace: ModuleTrace,
    replaced: Mapping[str, Replacement],
    target: Target,
    *,
    threads: int,
    isa: str = "",
    table: SiteTable | None = None,
    baseline_memory_bytes: float | None = None,
    baseline_size_bytes: float | None = None,
) -> Prediction:
    """Costs of the traced module with `replaced` sites: `latency_s`, memory, size.

    A kind of layer that `table` has measured costs what it measured; any other, the form's calibrated kernel plus
    its call. Memory and size are the baseline's (as measured; else the trace's bytes) with the weights exchanged.
    """
    rates = Rates(target, threads, isa)
    working_set = _working_set(trace, replaced)
    taken, added = 0.0, {"rest": 0.0}
    for name, replacement in replaced.items():
        if name not in trace.sites:
            raise BadInput(f"site {name!r} was not met in the traced forward", "trace with an input that uses it")
        site = trace.sites[name]
        taken += site.seconds
        measured = table.get(site, replacement) if table is not None else None
        one = (
            measured
            if measured is not None
            else rates.call_s(replacement.form)
            + rates.product_s(replacement.form, replacement.nbytes, site.weights, site.rows, working_set)
        )
        part = f"matrices:{replacement.form}"
        added[part] = added.get(part, 0.0) + one * site.calls
    added["rest"] = max(trace.seconds - taken, 0.0)
    old = sum(trace.sites[name].nbytes for name in replaced)
    new = sum(replacement.nbytes for replacement in replaced.values())
    held = sum(r.nbytes if r.resident_bytes is None else r.resident_bytes for r in replaced.values())
    size = trace.nbytes if baseline_size_bytes is None else baseline_size_bytes
    memory = trace.nbytes if baseline_memory_bytes is None else baseline_memory_bytes
    owners = {"weights": max(trace.nbytes - old, 0.0) + held, "scratch": max(memory - trace.nbytes, 0.0)}
    return Prediction(
        Costs(
            latency_s=sum(added.values()),
            memory_bytes=sum(owners.values()),
            size_bytes=max(size - old, 0.0) + new,
        ),
        parts={"latency_s": added},
        memory=owners,
        guessed=tuple(sorted(rates.guessed)),
    )


def _working_set(trace: ModuleTrace, replaced: Mapping[str, Replacement]) -> float:
    """Bytes of weights one forward reads."""
    return sum(replaced[name].nbytes if name in replaced else site.nbytes for name, site in trace.sites.items())
