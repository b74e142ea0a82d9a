"""`ModuleSubject`: any torch module as the main path sees it: one forward pass, and agreement with the original."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headway.core.errors import BadInput
from headway.core.model import Site
from headway.core.module_model import ModuleModel
from headway.core.module_workload import ModuleWorkload, digest
from headway.core.statistics import bootstrap
from headway.core.target import Target
from headway.core.workload import Workload, user_function
from headway.hardware.module_cost import ModuleTrace, Replacement, predict_module, trace_module
from headway.optimize.subject import Split


class ModuleSubject:
    """Times the model's sample; scores agreement on the workload's search and held-out inputs."""

    latency_metric = "latency_s"

    def __init__(self, model: ModuleModel, workload: Workload) -> None:
        self.model = model
        self.original = model
        """What quality is judged against."""
        self.workload = workload
        self.data: ModuleWorkload = workload.data if workload.data is not None else model.workload()
        self._originals: dict[tuple[Split, int], Any] = {}
        self.loss_power = 1.0 if self.data.metric == "mean cosine" else 0.5
        self._judge: Callable[[Any, Any], Any] | None = None
        """The user's own."""
        if ":" in workload.quality:
            self._judge = user_function(workload.quality)

    def on(self, model: ModuleModel) -> ModuleSubject:
        made = copy.copy(self)
        made.model = model
        made.__dict__.pop("trace", None)
        return made

    def describe(self) -> Mapping[str, Any]:
        return {
            "sample": [list(t.shape) for t in self.model.sample if isinstance(t, torch.Tensor)],
            "inputs": {split: self.units(split) for split in ("search", "heldout")},
            "calibration": len(self.data.calibration),
            "content": self._content,
            "quality": self.workload.judge() if ":" in self.workload.quality else self.data.metric,
        }

    @cached_property
    def _content(self) -> str:
        """What was measured with other inputs is another measurement, however many they are."""
        known = [] if self.data.truth is None else [self.data.truth]
        return digest([self.model.sample, self.data.calibration, self.data.search, self.data.heldout, *known])

    def calibration(self) -> Sequence[tuple[Any, ...]]:
        return self.data.calibration

    def clocks(self, model: ModuleModel) -> Mapping[str, tuple[Callable[[], object], int]]:
        return {"latency_s": (lambda: model.run(model.sample), 1)}

    def units(self, split: Split) -> int:
        return len(self._pieces(split))

    def _pieces(self, split: Split) -> Sequence[tuple[Any, ...]]:
        return self.data.search if split == "search" else self.data.heldout

    def qualities(
        self, models: Sequence[ModuleModel], split: Split, units: int, full: bool
    ) -> list[Mapping[str, float]]:
        pieces = self._pieces(split)[:units]
        for number, inputs in enumerate(pieces):
            if (split, number) not in self._originals:
                self._originals[split, number] = self._original(inputs)
        return [self._quality(model, split, pieces) for model in models]

    def _original(self, inputs: tuple[Any, ...]) -> Any:
        try:
            return self.original.run(inputs)
        except Exception as error:  # whatever the user's network raises
            shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs if isinstance(t, torch.Tensor))
            raise BadInput(
                f"{self.model.name} does not take the inputs given ({shapes}): {str(error).splitlines()[0][:160]}",
                "give inputs of the shape and type of its sample",
            ) from None

    def _quality(self, model: ModuleModel, split: Split, pieces: Sequence[tuple[Any, ...]]) -> Mapping[str, float]:
        judged = []
        for number, inputs in enumerate(pieces):
            original, output = self._originals[split, number], model.run(inputs)
            if self._judge is None:
                judged.append(self.data.scores(split, number, original, output))
            else:
                judged.append(self._judge(original, output))
        scores = np.concatenate([self._scores(found) for found in judged])
        found = {"quality": float(scores.mean())}
        if self.data.metric == "top-1 agreement":
            found["top1_agreement"] = found["quality"]
        if len(scores) > 1:
            interval = bootstrap(scores, lambda values: values.mean(axis=-1))
            found |= {"quality_low": interval.low, "quality_high": interval.high}
        return found

    def _scores(self, judged: Any) -> npt.NDArray[np.float64]:
        try:
            scores = np.atleast_1d(np.asarray(judged, np.float64))
        except (TypeError, ValueError):
            scores = np.array([np.nan])
        if not np.isfinite(scores).all() or not len(scores):
            raise BadInput(
                f"quality {self.workload.quality} gave {judged!r:.60}", "it must give finite numbers, 1 for no loss"
            )
        return scores

    @cached_property
    def trace(self) -> ModuleTrace:
        """One forward of the unmodified model, timed site by site."""
        shapes = {site.name: (site.out_features, site.in_features) for site in self.model.sites()}
        return trace_module(self.model.runtime, self.model.sample, shapes)

    def predict(
        self,
        target: Target,
        stored: Mapping[str, tuple[str, float]],
        threads: int,
        plugged: ModuleModel | None = None,
    ) -> Mapping[str, Mapping[str, float]]:
        held = {site.name: self.model.weight(site.name) for site in self.model.sites()}
        replaced = {
            name: Replacement(form, nbytes)
            for name, (form, nbytes) in stored.items()
            if name in self.trace.sites and (form, nbytes) != (held[name].form, float(held[name].nbytes))
        }
        made = predict_module(
            self.trace,
            replaced,
            target,
            threads=threads,
            baseline_memory_bytes=2.0 * self.trace.nbytes,  # loading builds the network, then fills it
            baseline_size_bytes=float(self.model.size_bytes()),
        )
        return {
            "latency_s": made.parts["latency_s"],
            "memory_bytes": made.memory,
            "size_bytes": {"weights": made.costs.size_bytes or 0.0},
        }

    def site_seconds(self, target: Target, site: Site, form: str, nbytes: float, threads: int) -> float:
        if site.name not in self.trace.sites:
            return 0.0
        changed = self.predict(target, {site.name: (form, nbytes)}, threads)["latency_s"]
        kept = self.trace.seconds - self.trace.sites[site.name].seconds
        return max(0.0, sum(changed.values()) - kept)
