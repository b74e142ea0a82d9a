"""`WeightTransform`: what every weight system shares; a system only says how it makes and stores one matrix."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import ClassVar, TypeVar

import numpy as np
from safetensors.numpy import save_file

from headway.core.model import Model, Site
from headway.core.registry import source_digest
from headway.core.system import YES, Context, Costs, Transform, Verdict, WeightSettings, no, sites_taken
from headway.core.target import Target
from headway.core.weight import F32, Weight
from headway.hardware.rates import Rates
from headway.llm.digests import weight_digest
from headway.llm.safetensors_file import SafetensorsFile
from headway.llm.weights.base import form_class

S = TypeVar("S", bound=WeightSettings)

FILE, KEY = "weight.safetensors", "weight"
"""Name of a cached weight's file, and of the entry of its header that describes it."""


@dataclass(frozen=True)
class Matrix:
    """One site's work: its float value w (out, in) and, where the system calibrates, H (in, in) of `calibration`.

    An embedding has no H. `held` is the weight now in the site, whose exact value w is.
    """

    site: Site
    value: F32
    hessian: F32 | None
    held: Weight | None = None


class WeightTransform(Transform[S]):
    """Quantise, factorise or encode the weights of linear sites, one by one, each result kept in the step cache.

    The cache key of a site is what the result depends on and no more (the weight it holds, what H was made of, the
    settings less the patterns), so recipes that give a site the same treatment share it.
    """

    version: ClassVar[int] = 1
    """Raise it when the same settings make another weight."""

    skips: ClassVar[frozenset[str]] = frozenset({"embedding", "head"})
    """Kinds of site left alone unless `only` names them."""

    @abstractmethod
    def make(self, matrix: Matrix, settings: S) -> Weight:
        """The stored form of one matrix."""

    @abstractmethod
    def stored(self, site: Site, settings: S) -> tuple[str, float]:
        """Name and bytes of the form that `make` will give, without making it."""

    def calibrates(self, settings: S) -> bool:
        """Whether `make` wants H."""
        return False

    def taken(self, settings: S, sites: Sequence[Site]) -> list[Site]:
        """The sites this system takes: those of kinds it skips only where `only` names them."""
        chosen = sites_taken(settings, sites)
        return [site for site in chosen if site.kind not in self.skips or settings.only]

    def applies(self, model: Model, target: Target) -> Verdict:
        return YES if model.sites() else no("it has no linear layer or 1x1 convolution")

    def apply(self, model: Model, settings: S, context: Context) -> Model:
        """Raises `BadInput` for weights that are not finite, and where calibration needs inputs that are missing."""
        return model.with_weights(self.weights(model, settings, context, self.taken(settings, model.sites())))

    def weights(self, model: Model, settings: S, context: Context, sites: Sequence[Site]) -> dict[str, Weight]:
        """The stored form of every site, from the cache where it is there, else made on all threads."""
        from headway.llm.weights import calibration

        calibrated = calibration.key_of(model, context) if self.calibrates(settings) else []
        loading = Lock()

        def build(site: Site) -> Weight:
            found = None  # an embedding looks rows up: its inputs are no columns to weigh
            if calibrated and site.kind != "embedding":
                with loading:  # H is large, and not needed when every weight is in the cache
                    found = calibration.hessians(model, context, [site])[site.name]
            held = model.weight(site.name)
            return self.make(Matrix(site, held.dequantize(), found, held), settings)

        def one(site: Site) -> tuple[str, Weight]:
            if context.cache is None:
                return site.name, build(site)
            what, source = settings.model_dump(exclude={"only", "skip"}), source_digest(type(self).__module__)
            depends = [weight_digest(model.weight(site.name)).hex(), [site.name, *calibrated] if calibrated else []]
            key = context.cache.key("weight", self.card.slug, self.version, source, what, *depends)
            return site.name, _kept(context.cache.folder(key, lambda folder: _keep(build(site), folder)))

        with ThreadPoolExecutor(max(1, context.threads)) as pool:
            made = pool.map(one, sites)
            return dict(context.progress.track(made, f"{self.card.slug}: {len(sites)} matrices", len(sites)))

    def predict(self, model: Model, target: Target, settings: S) -> Costs:
        """Bytes of all weights, and seconds of one row through every site, from the target's kernel rates."""
        taken = {site.name for site in self.taken(settings, model.sites())}
        rates = Rates(target, target.cores)
        sizes: dict[str, tuple[str, float]] = {}
        for site in model.sites():
            weight = model.weight(site.name)
            held = (weight.form, float(weight.nbytes))
            sizes[site.name] = self.stored(site, settings) if site.name in taken else held
        total = sum(nbytes for _, nbytes in sizes.values())
        seconds = sum(rates.product_s(*sizes[site.name], float(site.parameters), 1.0, total) for site in model.sites())
        old = sum(model.weight(site.name).nbytes for site in model.sites())
        return Costs(latency_s=seconds, size_bytes=model.size_bytes() - old + total)


def _keep(weight: Weight, folder: Path) -> None:
    described = json.dumps({"form": weight.form, "meta": dict(weight.meta())})
    tensors = {name: np.ascontiguousarray(array) for name, array in weight.tensors().items()}
    save_file(tensors, folder / FILE, {KEY: described})


def _kept(folder: Path) -> Weight:
    """Its arrays are views of the file: what a search holds of many options can leave memory again."""
    path = folder / FILE
    opened = SafetensorsFile(path, os.open(path, os.O_RDONLY))
    described = json.loads(opened.metadata[KEY])
    return form_class(described["form"]).load({name: opened.array(name) for name in opened}, described["meta"])
