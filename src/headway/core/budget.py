"""`Budget`: limits with units, from text, and the objective to improve once they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from headway.core.errors import BadInput
from headway.core.units import Quantity, show


@dataclass(frozen=True)
class Key:
    """What a word of a budget means: the metrics that can answer it (the first one measured counts)."""

    metrics: tuple[str, ...]
    dimension: str
    example: str


KEYS: dict[str, Key] = {
    "latency": Key(("tpot_s", "latency_s"), "time", "latency<=6ms/token"),
    "tpot": Key(("tpot_s",), "time", "tpot<=6ms"),
    "ttft": Key(("ttft_s",), "time", "ttft<=300ms"),
    "throughput": Key(("throughput_tok_s", "throughput_per_s"), "rate", "throughput>=500tok/s"),
    "memory": Key(("memory_bytes",), "bytes", "memory<=200MB"),
    "size": Key(("size_bytes",), "bytes", "size<=90MB"),
    "quality": Key(("quality",), "ratio", "quality>=0.98"),
    "kl": Key(("kl",), "ratio", "kl<=0.02"),
    "top1_agreement": Key(("top1_agreement",), "ratio", "top1_agreement>=0.95"),
    "energy": Key(("energy_j",), "energy", "energy<=2J"),
    "cost": Key(("cost_usd_per_h",), "cost", "cost<=2USD/h"),
}

OBJECTIVES = ("latency", "memory", "size", "energy")
_LIMIT = re.compile(r"\s*(?P<key>[A-Za-z_][\w-]*)\s*(?P<op><=|>=|==|=|<|>|≤|≥)?\s*(?P<value>[^,]*)")
_SIGNS = {"<=": "<=", "≤": "<=", "<": "<=", ">=": ">=", "≥": ">=", ">": ">="}


@dataclass(frozen=True)
class Limit:
    """`metric key` is at most (`<=`) or at least (`>=`) `value`, in the key's base unit."""

    metric: str
    op: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{self.op}{show(self.value, KEYS[self.metric].dimension).replace(' ', '')}"

    def missed_by(self, measured: float) -> float:
        """How far `measured` is beyond the limit, relative to it (0: it holds; NaN never holds)."""
        gap = measured - self.value if self.op == "<=" else self.value - measured
        if gap <= 0:
            return 0.0
        return gap / abs(self.value) if self.value and gap == gap else float("inf")


@dataclass(frozen=True)
class Violation:
    """A limit that does not hold; `value` is None where the metric was not measured."""

    limit: Limit
    value: float | None
    missed_by: float

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.limit}: not measured here"
        dimension = KEYS[self.limit.metric].dimension
        return f"{self.limit}: {show(self.value, dimension)} misses it by {100 * self.missed_by:.1f}%"


@dataclass(frozen=True)
class Budget:
    """Every limit must hold. Text: `latency<=6ms/token, quality>=0.98`."""

    limits: tuple[Limit, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Raises `BadInput` that points at the character and names the known keys or units."""
        limits: list[Limit] = []
        position = 0
        for part in text.split(",") if text.strip() else []:
            limit = _parse_limit(part, text, position)
            if any((limit.metric, limit.op) == (known.metric, known.op) for known in limits):
                raise _fail(text, position, f"{limit.metric} is limited twice", "keep one")
            limits.append(limit)
            position += len(part) + 1
        return cls(tuple(limits))

    def __str__(self) -> str:
        return ", ".join(str(limit) for limit in self.limits)

    def check(self, measured: Mapping[str, float]) -> list[Violation]:
        """The limits that do not hold for these metrics (keys as in the JSON interface)."""
        found = []
        for limit in self.limits:
            value = lookup(limit.metric, measured)
            missed = float("inf") if value is None else limit.missed_by(value)
            if missed > 0:
                found.append(Violation(limit, value, missed))
        return found

    def limit(self, key: str) -> float | None:
        """The value of that key's limit, if it has one."""
        return next((limit.value for limit in self.limits if limit.metric == key), None)


@dataclass(frozen=True)
class Objective:
    """What to make small once the budget holds."""

    name: str = "latency"

    @classmethod
    def parse(cls, text: str) -> Objective:
        if text not in OBJECTIVES:
            near = get_close_matches(text, OBJECTIVES, n=1)
            mend = f"did you mean {near[0]}?" if near else f"objectives are: {', '.join(OBJECTIVES)}"
            raise BadInput(f"cannot minimise {text!r}", mend)
        return cls(text)

    def value(self, measured: Mapping[str, float]) -> float:
        """The figure to compare; infinite where it was not measured."""
        value = lookup(self.name, measured)
        return float("inf") if value is None else value


def lookup(key: str, measured: Mapping[str, float]) -> float | None:
    """The first of the key's metrics that was measured."""
    return next((measured[metric] for metric in KEYS[key].metrics if metric in measured), None)


def _fail(text: str, at: int, what: str, mend: str) -> BadInput:
    return BadInput(f"budget: {what} at character {at + 1}: {text[:at]}»{text[at:]}", mend)


def _parse_limit(part: str, text: str, start: int) -> Limit:
    match = _LIMIT.fullmatch(part)
    if not match:
        raise _fail(text, start, "expected a limit", "write e.g. latency<=6ms/token")
    key = match["key"]
    at = start + match.start("key")
    if key not in KEYS:
        near = get_close_matches(key, KEYS, n=1)
        raise _fail(
            text, at, f"no budget key {key!r}", f"did you mean {near[0]}?" if near else f"keys are: {', '.join(KEYS)}"
        )
    known = KEYS[key]
    if match["op"] not in _SIGNS:
        raise _fail(text, start + match.end("key"), f"{key} needs <= or >=", f"write e.g. {known.example}")
    value, at = match["value"], start + match.start("value")
    try:
        quantity = Quantity.parse(value)
    except BadInput as error:
        raise _fail(text, at, error.what, error.mend) from None
    if quantity.dimension != known.dimension:
        unit = "has no unit" if quantity.dimension == "ratio" else f"is a {quantity.dimension}"
        raise _fail(text, at, f"{key}: {value.strip()!r} {unit}", f"write e.g. {known.example}")
    if quantity.value < 0:
        raise _fail(text, at, f"{key}: {value.strip()!r} is negative", f"write e.g. {known.example}")
    return Limit(key, _SIGNS[match["op"]], quantity.value)
