"""`Correction`: what measured runs of this session teach about a prediction's parts.

A prediction is a sum of parts (each form's matrices, attention, moves, fixed). Each measured run says what the sum
was. The factors theta >= 0 that make `parts @ theta` fit the runs are found by non-negative least squares on
relative errors, drawn towards 1 where the runs say nothing:

    minimise  sum_i (parts_i @ theta / seconds_i - 1)^2  +  pull * sum_k (theta_k - 1)^2 * weight_k

`weight_k` is the part's mean share, so that one run scales every part alike (a slower machine: a neighbour took
bandwidth) and differing runs tell the parts apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

PULL = 0.05
"""How many runs the belief in the uncorrected prediction is worth."""

RECENT = 12
"""Runs that count: load on the machine changes, old runs mislead."""


@dataclass(frozen=True)
class Run:
    """One measured run: its predicted parts (seconds, uncorrected) and the measured seconds."""

    parts: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Correction:
    """A factor for each part; parts it has never seen, and all of them without runs, keep the common factor."""

    factors: Mapping[str, float]
    common: float = 1.0

    def __call__(self, parts: Mapping[str, float]) -> float:
        """Corrected seconds."""
        return sum(seconds * self.factors.get(name, self.common) for name, seconds in parts.items())


NONE = Correction({})


def learn(runs: Sequence[Run]) -> Correction:
    """The correction that the last `RECENT` runs teach; runs without time or parts are left out."""
    runs = [run for run in runs if run.seconds > 0 and sum(run.parts.values()) > 0][-RECENT:]
    if not runs:
        return NONE
    names = sorted({name for run in runs for name in run.parts})
    parts = np.array([[run.parts.get(name, 0.0) for name in names] for run in runs])
    seconds = np.array([run.seconds for run in runs])
    common = float(np.median(seconds / parts.sum(axis=1)))
    # factors are searched around the common one: theta = common * scale, scale drawn towards 1
    design = parts * common / seconds[:, None]
    share = (parts / parts.sum(axis=1, keepdims=True)).mean(axis=0)
    pull = np.sqrt(PULL * np.maximum(share, 1e-6))
    scale, _ = nnls(np.vstack([design, np.diag(pull)]), np.concatenate([np.ones(len(runs)), pull]))
    return Correction({name: common * float(value) for name, value in zip(names, scale, strict=True)}, common)
