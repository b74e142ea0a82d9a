"""What each metric of the JSON interface is called, which way is better, and how its values are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """`text` is what follows a value divided by `scale`."""

    text: str
    scale: float

    def write(self, value: float | None, digits: int = 3, exact: bool = False) -> str:
        """The value in this unit with `digits` significant digits, e.g. `4.12 ms`; an en dash for nothing.

        `exact`: a value that somebody chose, written without closing zeros.
        """
        if value is None or not math.isfinite(value):
            return "–"
        number = significant(value / self.scale, digits)
        if exact and "." in number and "e" not in number:
            number = number.rstrip("0").rstrip(".")
        return f"{number}\u202f{self.text}" if self.text else number


@dataclass(frozen=True)
class Metric:
    """A key of `measured` and `predicted`."""

    key: str
    label: str
    kind: str
    """`time`, `bytes`, `rate`, `energy`, `money` or `share`: decides the units."""
    lower_is_better: bool = True
    per: str = ""
    """What a time or rate is per, e.g. `token`."""
    better: str = "smaller"
    worse: str = "larger"

    def unit(self, values: Iterable[float | None]) -> Unit:
        """The unit in which the largest of `values` reads best."""
        finite = [abs(value) for value in values if value is not None and math.isfinite(value)]
        largest = max(finite, default=0.0)
        steps = _STEPS.get(self.kind, (("", 1.0),))
        text, scale = next((step for step in steps if largest >= step[1]), steps[-1])
        return Unit(f"{text}/{self.per}" if self.per and text else text, scale)

    def write(self, value: float | None, digits: int = 3, exact: bool = False) -> str:
        """One value in its own best unit. A share gets four digits, so that 0.9996 does not read as 1."""
        if self.kind == "share" and not self.lower_is_better:
            digits = max(digits, 4)
        return self.unit([value]).write(value, digits, exact)


_STEPS: dict[str, tuple[tuple[str, float], ...]] = {
    "time": (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)),
    "bytes": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)),
    "rate": (("M", 1e6), ("k", 1e3), ("", 1.0)),
    "energy": (("J", 1.0), ("mJ", 1e-3)),
}


def _time(key: str, label: str, per: str = "") -> Metric:
    return Metric(key, label, "time", per=per, better="faster", worse="slower")


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        _time("tpot_s", "Latency per token", per="token"),
        _time("latency_s", "Latency"),
        _time("ttft_s", "Time to first token"),
        Metric("throughput_tok_s", "Throughput, tokens/s", "rate", lower_is_better=False, better="more", worse="less"),
        Metric("throughput_per_s", "Throughput, items/s", "rate", lower_is_better=False, better="more", worse="less"),
        Metric("size_bytes", "Size", "bytes"),
        Metric("memory_bytes", "Memory", "bytes", better="less", worse="more"),
        Metric("energy_j", "Energy", "energy", better="less", worse="more"),
        Metric("quality", "Quality", "share", lower_is_better=False, better="better", worse="worse"),
        Metric("top1_agreement", "Top-1 agreement", "share", lower_is_better=False, better="better", worse="worse"),
        Metric("kl", "KL divergence", "share", better="less", worse="more"),
    )
}


def metric(key: str, unit: str = "") -> Metric:
    """The metric of that key; an unknown one is shown under its own name, by its `unit` or its suffix."""
    if key in METRICS:
        return METRICS[key]
    label = key.replace("_", " ")
    if unit in ("s", "B"):
        return _time(key, label) if unit == "s" else Metric(key, label, "bytes")
    if key.endswith("_tok_s"):
        named = label.removesuffix(" tok s").capitalize()
        return Metric(key, f"{named}, tokens/s", "rate", lower_is_better=False, better="more", worse="less")
    if key.endswith("_s") and not key.endswith("per_s"):
        return _time(key, label.removesuffix(" s"))
    if key.endswith("_bytes"):
        return Metric(key, label.removesuffix(" bytes"), "bytes")
    return Metric(key, label, "share")


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits and no exponent between 1e-4 and 1e6; thousands set apart."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    size = abs(rounded)
    if not 1e-4 <= size < 1e9:
        return f"{rounded:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{rounded:,.{decimals}f}".replace(",", "\u202f")


def times(ratio: float) -> str:
    """A ratio as people say it, e.g. `3.2×`."""
    return f"{significant(ratio)}×"


def percent(share: float) -> str:
    """0.0123 -> `1.2%`: two significant digits, whole numbers from 10 on."""
    value = 100 * share
    if not math.isfinite(value):
        return "unknown"
    if abs(value) >= 9.95:
        return f"{value:,.0f}%".replace(",", "\u202f")
    return f"{significant(value, 2)}%"
