"""`Subject`: a model with its workload: what the main path needs to time it, score it and predict it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from headway.core.model import Model, Site
from headway.core.target import Target

Split = Literal["search", "heldout"]


class Subject(Protocol):
    """One per runtime: `language.py` for language models, `module.py` for any other torch module."""

    model: Model
    """The unmodified model."""
    latency_metric: str
    """The metric that `latency` means in a budget: `tpot_s` or `latency_s`."""
    loss_power: float
    """-ln quality grows as this power of the predicted loss: 1 where quality is smooth in the error (perplexity,
    cosine), 1/2 where it follows the error's size (agreement of decisions, relative error)."""

    def on(self, model: Model) -> Subject:
        """The same workload, what is predicted is predicted of `model`; quality stays against the unmodified one."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """The workload as JSON: shapes, splits, quality function."""
        ...

    def calibration(self) -> Sequence[tuple[Any, ...]]:
        """Inputs of the readable torch module, from data no score ever uses."""
        ...

    def clocks(self, model: Model) -> Mapping[str, tuple[Callable[[], object], int]]:
        """Metric -> (one repetition, how many units of the metric it holds)."""
        ...

    def units(self, split: Split) -> int:
        """How many pieces (windows, batches) a split has."""
        ...

    def qualities(self, models: Sequence[Model], split: Split, units: int, full: bool) -> list[Mapping[str, float]]:
        """How close each model comes to the original in exact float arithmetic on the first `units` pieces of a split.

        `quality` with a 95% interval, `quality_low` and `quality_high`, where one can be had; with `full` what else is
        known: `kl`, `top1_agreement`, `perplexity`. The original runs once for all models.
        """
        ...

    def predict(
        self, target: Target, stored: Mapping[str, tuple[str, float]], threads: int, plugged: Model | None = None
    ) -> Mapping[str, Mapping[str, float]]:
        """Metric -> its parts (seconds, or bytes by owner) when the sites hold `stored`: site -> (form, bytes).

        plugged: the model with the policies that it would run with.
        """
        ...

    def site_seconds(self, target: Target, site: Site, form: str, nbytes: float, threads: int) -> float:
        """Predicted seconds one unit of latency spends in that site."""
        ...
