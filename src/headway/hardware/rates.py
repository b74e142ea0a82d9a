"""`Rates`: seconds of one product on a target, interpolated between its calibrated kernels' measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from headway.core.target import KernelPoint, KernelRate, Target

SAME_BITS = 0.03
"""Two stored sizes within this share of each other are one variant of a form (padding, a group cut short)."""


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Piecewise linear in log-log through [(x, y)] rising in x; outside, the nearest y."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            span = math.log(x1) - math.log(x0)
            if span <= 0:  # equal but for rounding
                return y1
            share = (math.log(x) - math.log(x0)) / span
            return math.exp(math.log(y0) + share * (math.log(y1) - math.log(y0)))
    return points[-1][1]


def _over_sets(points: Sequence[KernelPoint], flat_to: float) -> list[tuple[float, float]]:
    """[(set bytes, seconds per weight)], rising: what was measured in the last cache holds up to `flat_to` bytes."""
    found = sorted((float(point.set_bytes), point.seconds_per_weight) for point in points)
    inside = [cost for size, cost in found if size < flat_to]
    if inside:
        found = sorted([*found, (flat_to, inside[-1])])
    return list(zip([size for size, _ in found], accumulate((cost for _, cost in found), max), strict=True))


def _at_rows(points: Sequence[tuple[float, float]], rows: float) -> float:
    """Seconds per weight for `rows` activations; beyond the most measured, in proportion."""
    most, cost = points[-1]
    return cost * rows / most if rows > most else interpolate(points, rows)


@dataclass(frozen=True)
class Rates:
    """Predicts on `threads` threads with kernels of `isa` (empty: whatever was measured last)."""

    target: Target
    threads: int
    isa: str = ""
    guessed: set[str] = field(default_factory=set, compare=False)
    """Forms asked for that were never calibrated: their seconds come from the roofline alone."""

    def variants(self, form: str) -> list[KernelRate]:
        """Calibrated variants of a form, fewest bits first, at the nearest thread count."""
        mine = [rate for rate in self.target.kernels if rate.form == form and self.isa in ("", rate.isa)]
        if not mine:
            return []
        nearest = min((abs(rate.threads - self.threads), rate.threads) for rate in mine)[1]
        last = {round(rate.bits_per_weight, 2): rate for rate in mine if rate.threads == nearest}
        return sorted(last.values(), key=lambda rate: rate.bits_per_weight)

    def product_s(self, form: str, nbytes: float, weights: float, rows: float, working_set: float) -> float:
        """Seconds of `rows` activations times a matrix of `weights` elements stored in `nbytes`, call not counted.

        `working_set`: bytes read between two uses of the same matrix, which decides the level it comes from.
        """
        if weights <= 0 or rows <= 0:
            return 0.0
        variants = self.variants(form)
        if not variants:
            self.guessed.add(form)
            return self.roofline_s(nbytes, 2.0 * weights * rows, working_set)
        bits = 8.0 * nbytes / weights
        return weights * self._per_weight(variants, bits, rows, working_set)

    def _per_weight(self, variants: Sequence[KernelRate], bits: float, rows: float, working_set: float) -> float:
        for below, above in pairwise(variants):
            if same_bits(bits, below.bits_per_weight):
                break
            if below.bits_per_weight < bits < above.bits_per_weight and not same_bits(bits, above.bits_per_weight):
                share = (bits - below.bits_per_weight) / (above.bits_per_weight - below.bits_per_weight)
                low = _at_rows(self._curve(below, working_set), rows)
                high = _at_rows(self._curve(above, working_set), rows)
                return low + share * (high - low)
        nearest = min(variants, key=lambda rate: abs(math.log(rate.bits_per_weight / max(bits, 1e-3))))
        curve = self._curve(nearest, working_set)
        cost = _at_rows(curve, rows)
        if same_bits(bits, nearest.bits_per_weight):
            return cost
        reading = min(1.0, curve[0][1] / cost)  # the share of the time that one row's product, the reading, takes
        return cost * max(0.0, 1.0 + reading * (bits / nearest.bits_per_weight - 1.0))

    def roofline_s(self, nbytes: float, ops: float, working_set: float, dtype: str = "f32") -> float:
        """The bound from bytes and arithmetic alone: for a kernel that was never run here."""
        level = self.target.level_for(working_set, self.threads)
        return max(
            nbytes / self.target.read_rate(level, self.threads),
            ops / self.target.compute_rate(dtype, self.threads),
        )

    def move_s(self, nbytes: float, working_set: float) -> float:
        """Seconds to stream `nbytes` of activations from the level that holds `working_set`."""
        return nbytes / self.target.read_rate(self.target.level_for(working_set, self.threads), self.threads)

    def _curve(self, rate: KernelRate, working_set: float) -> list[tuple[float, float]]:
        """[(rows, seconds per weight)] at that working set; more rows or a larger set never cost less."""
        caches = self.target.memory[:-1]
        flat_to = caches[-1].holds_bytes / 2 if caches else 0.0
        found = []
        for rows in sorted({point.rows for point in rate.points}):
            mine = [point for point in rate.points if point.rows == rows]
            found.append((float(rows), interpolate(_over_sets(mine, flat_to), max(working_set, 1.0))))
        return list(zip([rows for rows, _ in found], accumulate((cost for _, cost in found), max), strict=True))

    def call_s(self, form: str) -> float:
        """Fixed cost of one product called from Python; a bare crossing for a form never measured."""
        variants = self.variants(form)
        return max((rate.call_s for rate in variants), default=self.target.crossing_s)

    @property
    def barrier_s(self) -> float:
        return self.target.barrier_s if self.threads > 1 else 0.0


def same_bits(bits: float, other: float) -> bool:
    """Whether two stored sizes per weight belong to one variant of a form."""
    return abs(bits - other) <= SAME_BITS * other
