"""Interleaved timing of native products, for the proofs of weight systems.

Every product is timed on its own in native code (5 to 100 us), and a sample is the sum over all products of the lower
quartile of a few rounds: those during which another process took the core fall out, on a busy machine too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from headway.core.measure import AGAIN, Timing, conditions
from headway.core.progress import Task
from headway.core.statistics import median_ratio

Seconds = npt.NDArray[np.float64]
"""Of each group's product, (groups,)."""

Arms = Mapping[str, Callable[[], Seconds]]

SAMPLE_ROUNDS = 5
"""Rounds that make one sample."""


def interleave(arms: Arms, baseline: str, samples: int, seed: int, task: Task) -> Timing:
    """Each round runs every arm in a random order, the baseline twice (the arm `again`)."""
    everyone = {**arms, AGAIN: arms[baseline]}
    generator = random.Random(seed)
    calls = dict.fromkeys(everyone, SAMPLE_ROUNDS)
    timing = Timing(baseline, seed, {name: [] for name in everyone}, calls, conditions=conditions())
    for _ in range(samples):
        rounds: dict[str, list[Seconds]] = {name: [] for name in everyone}
        for _ in range(SAMPLE_ROUNDS):
            order = tuple(generator.sample(sorted(everyone), len(everyone)))
            for name in order:
                rounds[name].append(everyone[name]())
        for name, seconds in rounds.items():
            timing.samples[name].append(float(np.quantile(np.stack(seconds), 0.25, axis=0).sum()))
        timing.orders.append(order)
        task.advance()
    timing.finished = True
    return timing


def ratio(timing: Timing, arm: str, to: str) -> float:
    """Median of the paired ratios of time, arm / to."""
    return median_ratio(timing.samples[arm], timing.samples[to]).value
