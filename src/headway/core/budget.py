"""`Budget`: limits with units, read from text, that measurements are checked against; and the objective to minimise."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.core.errors import BadInput
from headway.core.units import BASE, EXAMPLE, NUMBER, UNITS, Quantity, QuantityError, nearest, show


@dataclass(frozen=True)
class Metric:
    """A key of a budget: the measured keys it may mean, by the dimension of the limit, and which way is better."""

    name: str
    measured: Mapping[str, tuple[str, ...]]
    """Dimension of the limit -> keys of `measured`, the first present one counts."""
    better: str
    """`low` or `high`."""
    preferred: str
    """The dimension that examples show."""
    best: float = 0.0
    """The value that cannot be bettered: a limit beyond it never holds."""
    signs: tuple[str, ...] = ()
    """Units that may follow a ratio."""


_LATENCY = ("tpot_s", "latency_s")

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("latency", {"time per token": ("tpot_s",), "time": _LATENCY}, "low", "time per token"),
        Metric("ttft", {"time": ("ttft_s",)}, "low", "time"),
        Metric("tpot", {"time per token": ("tpot_s",), "time": ("tpot_s",)}, "low", "time per token"),
        Metric(
            "throughput",
            {"tokens per second": ("throughput_tok_s",), "per second": ("throughput_per_s", "throughput_tok_s")},
            "high",
            "tokens per second",
            math.inf,
        ),
        Metric("memory", {"bytes": ("memory_bytes",)}, "low", "bytes"),
        Metric("size", {"bytes": ("size_bytes",)}, "low", "bytes"),
        Metric("quality", {"ratio": ("quality",)}, "high", "ratio", 1.0, ("%",)),
        Metric("kl", {"ratio": ("kl",)}, "low", "ratio"),
        Metric("top1_agreement", {"ratio": ("top1_agreement",)}, "high", "ratio", 1.0, ("%",)),
        Metric("energy", {"energy": ("energy_j",), "energy per token": ("energy_j",)}, "low", "energy per token"),
        Metric("cost", {"money per hour": ("cost_usd_per_h",)}, "low", "money per hour"),
    )
}

OBJECTIVES = ("latency", "memory", "size", "energy")
_EXAMPLES = {"quality": "quality>=0.95", "kl": "kl<=0.02", "top1_agreement": "top1_agreement>=0.95"}
_OPERATORS = {"<=": "<=", ">=": ">=", "<": "<", ">": ">", "≤": "<=", "≥": ">=", "=<": "<=", "=>": ">="}
_OPERATOR = re.compile(r"[<>=≤≥!:]+")


class BudgetError(BadInput):
    """Text that is no budget: `position` is the offending character; `caret()` draws it."""

    def __init__(self, text: str, position: int, what: str, mend: str) -> None:
        self.text = text
        self.position = position
        super().__init__(f"budget: character {position + 1}: {what}", mend)

    def caret(self) -> str:
        """The text with a caret under the offending character: two lines for a terminal."""
        return f"{self.text}\n{' ' * self.position}^"


@dataclass(frozen=True)
class Limit:
    """One limit: `metric op quantity`."""

    metric: str
    op: str
    quantity: Quantity
    text: str

    @property
    def value(self) -> float:
        """The limit in base units: seconds, bytes, tokens per second ..."""
        return self.quantity.value

    def measured_key(self, measured: Mapping[str, float]) -> str:
        """The key of `measured` this limit is about, present or not."""
        keys = METRICS[self.metric].measured[self.quantity.dimension]
        return next((key for key in keys if key in measured), keys[0])

    def holds(self, value: float) -> bool:
        if self.op == "<=":
            return value <= self.value
        if self.op == ">=":
            return value >= self.value
        return value < self.value if self.op == "<" else value > self.value

    def missed_by(self, value: float | None) -> float:
        """Relative miss: 0.18 for 18% beyond the limit, 0 when it holds, inf for nothing measured or not a number."""
        if value is None or math.isnan(value):
            return math.inf
        if self.holds(value):
            return 0.0
        return abs(value - self.value) / abs(self.value) if self.value else abs(value)


@dataclass(frozen=True)
class Violation:
    """A limit that does not hold. `value` is `None` when nothing was measured for it; then `missed_by` is inf."""

    metric: str
    limit: Limit
    value: float | None
    missed_by: float

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.limit.text}: not measured"
        here = show(self.value, BASE[self.limit.quantity.dimension])
        return f"{self.limit.text}: {here} here, missed by {100 * self.missed_by:.3g}%"

    def as_json(self) -> dict[str, Any]:
        missed = self.missed_by if math.isfinite(self.missed_by) else None
        return {"metric": self.metric, "limit": self.limit.text, "value": self.value, "missed_by": missed}


@dataclass(frozen=True)
class Budget:
    """Limits that must all hold. Empty: anything goes."""

    limits: tuple[Limit, ...] = ()

    @classmethod
    def parse(cls, text: str, *, own_quality: bool = False) -> Budget:
        """`latency<=6ms/token, quality>=0.95`; raises `BudgetError` that points at the character.

        A limit that can never hold is an error too. `own_quality`: quality is a user's function, on any scale.
        """
        if not isinstance(text, str):
            raise BadInput(f"a budget is text, not {text!r}", "write e.g. 'latency<=6ms/token'")
        limits: list[Limit] = []
        start = 0
        for part in re.split(r"[,;\n]", text):
            if part.strip():
                limit = _limit(text, start, part, own_quality)
                if any(limit.metric == other.metric for other in limits):
                    raise BudgetError(text, start, f"{limit.metric} is limited twice", "give each limit once")
                limits.append(limit)
            elif "," in text or ";" in text:
                raise BudgetError(text, min(start, len(text) - 1), "a limit is missing here", "remove the comma")
            start += len(part) + 1
        return cls(tuple(limits))

    def check(self, measured: Mapping[str, float]) -> list[Violation]:
        """The limits that `measured` (keys as in the JSON interface) does not hold, in order.

        A limit on something that was not measured does not hold. `latency` means `tpot_s` where that is measured.
        """
        found = []
        for limit in self.limits:
            value = measured.get(limit.measured_key(measured))
            missed = limit.missed_by(value)
            if value is None or not limit.holds(value):
                found.append(Violation(limit.metric, limit, value, missed))
        return found

    def met(self, measured: Mapping[str, float]) -> bool:
        return not self.check(measured)

    def limit(self, key: str) -> float | None:
        """The value of that key's limit in base units, if it has one."""
        return next((limit.value for limit in self.limits if limit.metric == key), None)

    def spare(self, measured: Mapping[str, float]) -> dict[str, float]:
        """Metric -> share of its limit left over (negative: missed), for what was measured."""
        spare = {}
        for limit in self.limits:
            value = measured.get(limit.measured_key(measured))
            if value is not None and limit.value:
                gap = (limit.value - value) / abs(limit.value)
                spare[limit.metric] = gap if limit.op in ("<", "<=") else -gap
        return spare

    def __str__(self) -> str:
        return ", ".join(limit.text for limit in self.limits)

    def as_json(self) -> list[dict[str, Any]]:
        """One object per limit: `metric`, `op`, `value` (base units), `unit`, `text`."""
        return [
            {
                "metric": limit.metric,
                "op": limit.op,
                "value": limit.value,
                "unit": BASE[limit.quantity.dimension],
                "text": limit.text,
            }
            for limit in self.limits
        ]


def _limit(text: str, start: int, part: str, own_quality: bool) -> Limit:
    key_at = start + len(part) - len(part.lstrip())
    operator = _OPERATOR.search(part)
    if operator is None:
        raise BudgetError(text, key_at, f"{part.strip()!r} has no <= or >=", "write e.g. latency<=6ms/token")
    key = part[: operator.start()].strip()
    metric = METRICS.get(key)
    if metric is None:
        close = nearest(key, METRICS)
        mend = f"did you mean {close!r}? keys are: " if close else "keys are: "
        raise BudgetError(text, key_at, f"unknown key {key!r}", mend + ", ".join(METRICS))
    operator_at = start + operator.start()
    wanted = "<=" if metric.better == "low" else ">="
    example = _EXAMPLES.get(key, f"{key}{wanted}{EXAMPLE[metric.preferred]}")
    op = _OPERATORS.get(operator[0])
    if op is None:
        raise BudgetError(text, operator_at, f"{operator[0]!r} is no limit", f"write e.g. {example}")
    if op[0] != wanted[0]:
        which = "small" if metric.better == "low" else "large"
        raise BudgetError(text, operator_at, f"{key} is better when {which}", f"write e.g. {example}")
    quantity = _quantity(text, start + operator.end(), part[operator.end() :], metric, example)
    limit = Limit(key, op, quantity, " ".join(part.split()))
    # Ratios can be as good as the original's; no time and no memory is ever 0.
    reached = limit.holds(metric.best) and (quantity.dimension == "ratio" or quantity.value != metric.best)
    if not reached and not (own_quality and key == "quality"):
        value = part[operator.end() :]
        value_at = start + operator.end() + len(value) - len(value.lstrip())
        best = "the original's is 1" if key == "quality" else f"{key} is {metric.best:g} at best"
        what = f"{limit.text} can never hold, {best}"
        raise BudgetError(text, value_at, what, f"write e.g. {example}")
    return limit


def _quantity(text: str, start: int, value: str, metric: Metric, example: str) -> Quantity:
    stripped = value.strip()
    at = start + len(value) - len(value.lstrip())
    if not stripped:
        raise BudgetError(text, min(at, len(text)), f"{metric.name} has no value", f"write e.g. {example}")
    try:
        quantity = Quantity.parse(stripped)
    except QuantityError as error:
        unit = stripped[error.position :].strip()
        fitting = [name for name, (dimension, _) in UNITS.items() if name and dimension in metric.measured]
        close = nearest(unit, fitting) if unit and error.position else ""  # at 0 it is the number that is missing
        mend = f"did you mean {stripped[: error.position].strip()}{close}?" if close else f"write e.g. {example}"
        raise BudgetError(text, at + error.position, f"{metric.name}: {error.what}", mend) from None
    number = NUMBER.match(stripped)
    unit_at = at + (number.end() if number else 0)
    unit = text[unit_at : at + len(stripped)].strip()
    if quantity.dimension == "ratio" and unit and unit not in metric.signs and "ratio" in metric.measured:
        raise BudgetError(text, unit_at, f"{metric.name} has no unit {unit!r}", f"write e.g. {example}")
    if quantity.dimension not in metric.measured:
        got = "has no unit" if quantity.dimension == "ratio" else f"is a {quantity.dimension}, no {metric.preferred}"
        raise BudgetError(text, min(unit_at, len(text)), f"{metric.name}: {stripped!r} {got}", f"write e.g. {example}")
    if quantity.value < 0:
        raise BudgetError(text, at, f"{metric.name} cannot be negative", f"write e.g. {example}")
    return quantity


@dataclass(frozen=True)
class Objective:
    """What to minimise once the budget holds."""

    name: str = "latency"

    @classmethod
    def parse(cls, text: str) -> Objective:
        """`latency`, `memory`, `size` or `energy`; raises `BadInput`."""
        name = str(text).strip()
        if name not in OBJECTIVES:
            close = nearest(name, OBJECTIVES)
            mend = f"did you mean {close!r}? " if close else ""
            raise BadInput(f"cannot minimise {name!r}", f"{mend}objectives are: {', '.join(OBJECTIVES)}")
        return cls(name)

    def key(self, measured: Mapping[str, float]) -> str:
        """The key of `measured` that is minimised."""
        keys = [key for group in METRICS[self.name].measured.values() for key in group]
        return next((key for key in keys if key in measured), keys[0])

    def value(self, measured: Mapping[str, float]) -> float:
        """The number to minimise; inf where it was not measured."""
        value = measured.get(self.key(measured))
        return math.inf if value is None or math.isnan(value) else value
