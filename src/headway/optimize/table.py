"""`ChoiceTable`: for every site and all it may hold, the predicted loss, bytes and time; and exact allocation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.model import Site
from headway.core.patterns import compress
from headway.core.recipe import Recipe, Step

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What a site may hold: a system with its settings, or (system "") what it holds already."""

    system: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    def step(self, only: Sequence[str]) -> Step:
        return Step(self.system, {**dict(self.settings), "only": list(only)})


KEEP = Choice()


@dataclass(frozen=True)
class ChoiceTable:
    """Arrays of shape (sites, choices); `loss` is infinite where a choice does not apply. Choice 0 is `KEEP`.

    `loss` adds up over sites to the predicted increase of the workload's mean loss; `seconds` to one unit of latency.
    """

    sites: tuple[Site, ...]
    choices: tuple[Choice, ...]
    loss: F64
    nbytes: F64
    seconds: F64
    forms: tuple[tuple[str, ...], ...]

    def allowing(self, allowed: Sequence[bool]) -> ChoiceTable:
        """The same table with some choices (never `KEEP`) forbidden."""
        mask = np.asarray(allowed, bool)
        mask[0] = True
        loss = np.where(mask[None, :], self.loss, np.inf)
        return ChoiceTable(self.sites, self.choices, loss, self.nbytes, self.seconds, self.forms)

    def scaled(self, factor: Callable[[str], float]) -> ChoiceTable:
        """The same table with the loss of every site times the factor of its kind."""
        factors = np.array([factor(site.kind) for site in self.sites])[:, None]
        loss = np.multiply(self.loss, factors, out=self.loss.copy(), where=np.isfinite(self.loss))  # not inf times 0
        return replace(self, loss=loss)

    def by_kind(self, picked: npt.NDArray[np.intp]) -> dict[str, float]:
        """Summed loss of an allocation by kind of site."""
        sums: dict[str, float] = {}
        for row, (site, choice) in enumerate(zip(self.sites, picked, strict=True)):
            sums[site.kind] = sums.get(site.kind, 0.0) + float(self.loss[row, choice])
        return sums

    def allocate(self, cost: F64, loss_limit: float) -> npt.NDArray[np.intp]:
        """One choice per site with the least summed `cost` (sites, choices) and a summed loss within `loss_limit`.

        Lagrangian relaxation by bisection on the price of loss, then greedy use of what is left: exact on the convex
        hull of the trade-off, and never over the limit unless no choice at all is within it.
        """
        finite = np.isfinite(self.loss)

        def pick(price: float) -> npt.NDArray[np.intp]:
            total = np.where(finite, cost + price * np.where(finite, self.loss, 0.0), np.inf)
            picked: npt.NDArray[np.intp] = np.argmin(total, axis=1)
            return picked

        low, high = 0.0, 1.0
        scale = max(float(np.max(cost)), 1e-30) / max(
            float(np.min(self.loss[finite & (self.loss > 0)], initial=1.0)), 1e-12
        )
        if self.total(self.loss, pick(0.0)) <= loss_limit:
            return pick(0.0)
        high = scale
        while self.total(self.loss, pick(high)) > loss_limit and high < scale * 1e12:
            high *= 8.0
        for _ in range(60):
            middle = (low * high) ** 0.5 if low > 0 else high / 2**10
            if self.total(self.loss, pick(middle)) <= loss_limit:
                high = middle
            else:
                low = middle
            if low > 0 and high / low < 1 + 1e-9:
                break
        return self._fill(pick(high), cost, loss_limit)

    def _fill(self, picked: npt.NDArray[np.intp], cost: F64, loss_limit: float) -> npt.NDArray[np.intp]:
        """Spend what the relaxation left of the limit: the best single changes, one after the other."""
        picked = picked.copy()
        rows = np.arange(len(picked))
        while True:
            slack = loss_limit - self.total(self.loss, picked)
            gain = cost[rows, picked][:, None] - cost
            extra = self.loss - self.loss[rows, picked][:, None]
            usable = np.isfinite(extra) & (extra <= slack) & (gain > 0)
            if slack < 0 or not usable.any():
                return picked
            site, choice = np.unravel_index(np.argmax(np.where(usable, gain, -np.inf)), gain.shape)
            picked[site] = choice

    def total(self, values: F64, picked: npt.NDArray[np.intp]) -> float:
        return float(values[np.arange(len(picked)), picked].sum())

    def stored(self, picked: npt.NDArray[np.intp]) -> dict[str, tuple[str, float]]:
        """Site -> (form, bytes) under this allocation."""
        return {
            site.name: (self.forms[row][choice], float(self.nbytes[row, choice]))
            for row, (site, choice) in enumerate(zip(self.sites, picked, strict=True))
        }

    def recipe(self, picked: npt.NDArray[np.intp]) -> Recipe:
        """The allocation as steps, one per choice in use, each with the patterns of its sites."""
        names = [site.name for site in self.sites]
        steps = []
        for index, choice in enumerate(self.choices):
            chosen = [name for name, taken in zip(names, picked, strict=True) if taken == index]
            if index and chosen:
                steps.append(choice.step(compress(chosen, names)))
        return Recipe(tuple(steps))

    def picked(self, assignment: Mapping[str, Choice]) -> npt.NDArray[np.intp]:
        """The allocation that gives every named site that choice and keeps the others."""
        index = {choice: number for number, choice in enumerate(self.choices)}
        return np.array([index[assignment.get(site.name, KEEP)] for site in self.sites], dtype=np.intp)
