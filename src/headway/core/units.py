"""Quantities: numbers with a unit, read from what people write and written for people to read."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from headway.core.errors import BadInput

_TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BYTES |= {f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)}
_ENERGY = {"uJ": 1e-6, "mJ": 1e-3, "J": 1.0, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6}
_TOKEN = ("token", "tokens", "tok")
_ITEM = ("image", "images", "request", "requests", "req", "item", "items")
_PER_TIME = {"s": 1.0, "min": 1 / 60, "h": 1 / 3600}
_MONEY = ("USD", "$")

UNITS: dict[str, tuple[str, float]] = {
    "": ("ratio", 1.0),
    "x": ("ratio", 1.0),
    "%": ("ratio", 0.01),
    **{unit: ("time", factor) for unit, factor in _TIME.items()},
    **{unit: ("bytes", factor) for unit, factor in _BYTES.items()},
    **{unit: ("energy", factor) for unit, factor in _ENERGY.items()},
    **{f"{unit}/{token}": ("time per token", f) for token in _TOKEN for unit, f in _TIME.items()},
    **{f"{unit}/{token}": ("energy per token", f) for token in _TOKEN for unit, f in _ENERGY.items()},
    **{f"{token}/{unit}": ("tokens per second", f) for token in _TOKEN for unit, f in _PER_TIME.items()},
    **{f"{item}/{unit}": ("per second", f) for item in (*_ITEM, "") for unit, f in _PER_TIME.items()},
    **{f"{money}/{unit}": ("money per hour", f * 3600) for money in _MONEY for unit, f in _PER_TIME.items()},
}
"""Unit -> (dimension, how many base units it is). The empty unit is the plain ratio."""

BASE = {
    "ratio": "",
    "time": "s",
    "bytes": "B",
    "energy": "J",
    "time per token": "s/token",
    "energy per token": "J/token",
    "tokens per second": "tok/s",
    "per second": "/s",
    "money per hour": "USD/h",
}
"""Dimension -> its base unit: SI, and USD per hour."""

EXAMPLE = {
    "ratio": "0.98",
    "time": "300ms",
    "bytes": "90MB",
    "energy": "2J",
    "time per token": "6ms/token",
    "energy per token": "50mJ/token",
    "tokens per second": "500tok/s",
    "per second": "20/s",
    "money per hour": "2USD/h",
}

NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Quantity:
    """`value` in the base unit of `dimension` (see `BASE`)."""

    value: float
    dimension: str

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """`6ms/token`, `1.5 GiB`, `500 tok/s`, `2USD/h`, `98%`, `0.98`; raises `QuantityError`, a `BadInput`."""
        match = NUMBER.match(text.strip())
        start = len(text) - len(text.lstrip())
        if match is None:
            raise QuantityError(text, start, f"{text.strip()!r} does not begin with a number", "write e.g. 6ms or 90MB")
        unit = "".join(text[start + match.end() :].split())
        if unit not in UNITS:
            mend = f"did you mean {match[0]}{nearest(unit, UNITS)}?" if nearest(unit, UNITS) else known_units()
            raise QuantityError(text, start + match.end(), f"unknown unit {unit!r}", mend)
        dimension, factor = UNITS[unit]
        # Divided by a whole number where it can be: 95 % is 0.95, which 95 * 0.01 is not.
        parts = round(1.0 / factor)
        value = float(match[0]) / parts if parts > 1 else float(match[0]) * factor
        if not math.isfinite(value):
            raise QuantityError(text, start, f"{match[0]} is too large", "write a finite number")
        return cls(value, dimension)

    def exact(self) -> str:
        """Text that `parse` reads back to the same value."""
        return f"{self.value!r}{BASE[self.dimension]}"

    def __str__(self) -> str:
        return show(self.value, BASE[self.dimension])


class QuantityError(BadInput):
    """Text that is no quantity: `position` is the offending character in `text`."""

    def __init__(self, text: str, position: int, what: str, mend: str) -> None:
        self.text = text
        self.position = position
        super().__init__(what, mend)


def known_units() -> str:
    """The units people write, for error messages."""
    return "units are ns, us, ms, s, min, h; B, KB, MB, GB, KiB, MiB, GiB; ms/token, tok/s, /s; J, mJ, Wh; USD/h; %"


def nearest(word: str, words: Iterable[str]) -> str:
    """The known word most like `word` (case aside), or an empty string."""
    known = list(words)
    folded = {item.lower(): item for item in reversed(known)}
    if word.lower() in folded:
        return folded[word.lower()]
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


def show(value: float, unit: str) -> str:
    """`value` in base `unit` with three figures and the prefix people use: 0.00587 s/token -> `5.87 ms/token`."""
    if not math.isfinite(value):
        return f"{value} {unit}".strip()
    head, slash, tail = unit.partition("/")
    rest = slash + tail
    if head == "s":
        return _prefixed(value, (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)), rest)
    if head == "B":
        return _prefixed(value, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)), rest)
    if head == "J":
        return _prefixed(value, (("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6)), rest)
    return f"{three(value)} {unit}".strip()


def _prefixed(value: float, scales: tuple[tuple[str, float], ...], rest: str) -> str:
    for name, factor in scales:
        if abs(value) >= factor * 0.9995:
            return f"{three(value / factor)} {name}{rest}"
    name, factor = scales[-1] if value else next(scale for scale in scales if scale[1] == 1.0)
    return f"{three(value / factor)} {name}{rest}"


def three(value: float) -> str:
    """Three significant figures without an exponent where people expect none: 98.4, 0.00123, 12300."""
    if value == 0:
        return "0"
    if not math.isfinite(value) or not 1e-5 <= abs(value) < 1e15:
        return f"{value:.3g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{float(f'{value:.3g}') if digits else round(value):.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
