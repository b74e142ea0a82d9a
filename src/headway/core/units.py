"""`Quantity`: a number with a unit, from text and back to text a person reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from headway.core.errors import BadInput

UNITS: dict[str, tuple[str, float]] = {
    "s": ("time", 1.0),
    "ms": ("time", 1e-3),
    "us": ("time", 1e-6),
    "µs": ("time", 1e-6),
    "ns": ("time", 1e-9),
    "min": ("time", 60.0),
    "m": ("time", 60.0),
    "h": ("time", 3600.0),
    "B": ("bytes", 1.0),
    "KB": ("bytes", 1e3),
    "kB": ("bytes", 1e3),
    "MB": ("bytes", 1e6),
    "GB": ("bytes", 1e9),
    "TB": ("bytes", 1e12),
    "KiB": ("bytes", 2.0**10),
    "MiB": ("bytes", 2.0**20),
    "GiB": ("bytes", 2.0**30),
    "TiB": ("bytes", 2.0**40),
    "tok/s": ("rate", 1.0),
    "token/s": ("rate", 1.0),
    "tokens/s": ("rate", 1.0),
    "req/s": ("rate", 1.0),
    "img/s": ("rate", 1.0),
    "/s": ("rate", 1.0),
    "USD/h": ("cost", 1.0),
    "J": ("energy", 1.0),
    "mJ": ("energy", 1e-3),
    "kJ": ("energy", 1e3),
    "%": ("ratio", 0.01),
    "": ("ratio", 1.0),
}
"""Unit -> (dimension, factor to the base: seconds, bytes, per second, USD per hour, joule, one)."""

PER = ("/token", "/tok", "/image", "/img", "/request", "/req", "/step")
"""What a time, an energy or a size may be said to be per; it does not change the number."""

NUMBER = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_SHOW: dict[str, tuple[tuple[float, str], ...]] = {
    "time": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B")),
    "energy": ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")),
    "rate": ((1.0, "/s"),),
    "cost": ((1.0, "USD/h"),),
    "ratio": ((1.0, ""),),
}


@dataclass(frozen=True)
class Quantity:
    """`value` in the base unit of `dimension`: seconds, bytes, per second, USD per hour, joule, or a plain ratio."""

    value: float
    dimension: str

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """`6ms/token`, `200MB`, `0.98`, `2USD/h`; raises `BadInput` naming the known units."""
        stripped = text.strip()
        match = NUMBER.match(stripped)
        if not match:
            raise BadInput(f"{text!r} does not begin with a number", "write e.g. 6ms, 200MB or 0.98")
        unit = stripped[match.end() :].strip()
        for per in PER:
            unit = unit.removesuffix(per) if unit != per else unit
        if unit not in UNITS:
            near = get_close_matches(unit, UNITS, n=1, cutoff=0.3)
            known = ", ".join(name for name in UNITS if name)
            raise BadInput(f"no unit {unit!r}", f"did you mean {near[0]}?" if near else f"units are: {known}")
        dimension, factor = UNITS[unit]
        value = float(match.group().replace("_", "")) * factor
        if value in (float("inf"), float("-inf")):
            raise BadInput(f"{text!r} is too large", "write a finite number")
        return cls(value, dimension)

    def __str__(self) -> str:
        return show(self.value, self.dimension)


def show(value: float, dimension: str) -> str:
    """Three significant digits in the unit a person would choose: `5.31 ms`, `98.4 MB`."""
    scales = _SHOW[dimension]
    factor, unit = next(((f, u) for f, u in scales if abs(value) >= f * 0.9995), scales[-1])
    number = f"{value / factor:.4g}" if dimension == "ratio" else f"{value / factor:.3g}"
    if "e" in number:
        number = f"{value / factor:.0f}" if abs(value) >= 1 else number
    return f"{number} {unit}".strip() if dimension != "rate" else f"{number}{unit}"
