"""`Run`: what the page shows of one piece of evidence, in plain values and with nothing left to look up."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.core.evidence import LoadRun
from headway.optimize.report.metrics import METRICS

Plain = Mapping[str, Any]

KEYS = tuple(METRICS)


@dataclass(frozen=True)
class Limit:
    """One limit of a budget and how the chosen candidate stands to it."""

    metric: str
    """A key of `measured`, e.g. `tpot_s`."""
    op: str
    """`<=`, `>=`, `<` or `>`."""
    limit: float
    here: float | None
    """None where nothing was measured or predicted."""
    text: str = ""
    """The limit as the user wrote it, e.g. `latency<=6ms/token`."""

    @property
    def met(self) -> bool:
        if self.here is None:
            return False
        holds = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}[self.op]
        return bool(holds(self.here, self.limit))

    @property
    def at_most(self) -> bool:
        return self.op[0] == "<"

    @property
    def spare(self) -> float | None:
        """Share of the limit left over; negative: by how much it is missed."""
        if self.here is None or self.limit == 0:
            return None
        gap = (self.limit - self.here) / abs(self.limit)
        return gap if self.at_most else -gap


@dataclass(frozen=True)
class Shown:
    """A candidate as the page draws it."""

    id: str
    recipe: str
    """The one-line form, long lists shortened."""
    role: str
    """`baseline`, `winner`, `front` or `measured` (dominated), or `predicted` (never measured)."""
    measured: Mapping[str, float]
    predicted: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """One comparison: the median of paired ratios candidate / baseline with its interval and the noise floor."""

    metric: str
    baseline: str
    candidate: str
    value: float
    low: float
    high: float
    n: int
    floor: float | None
    """Relative difference that A against A leaves possible: 0.02 is 2%; None where it was not measured."""
    verdict: str
    """`faster`, `slower`, `better`, `worse`, `none` or `too few pairs`."""
    label: str = ""
    """How the row is called; empty: by its metric."""


@dataclass(frozen=True)
class Samples:
    """Every sample of one arm, in the order in which they were taken."""

    arm: str
    metric: str
    values: tuple[float, ...]
    role: str = "candidate"
    """`baseline`, `again` (the baseline's second run, A against A) or `candidate`."""
    unit: str = ""
    """`s`, `B` ...: how a measurement that is no known metric is written."""


@dataclass(frozen=True)
class Bar:
    """One bar of a proof, values as text."""

    name: str
    paper: str
    bar: str
    here: str
    met: bool


@dataclass(frozen=True)
class SiteBits:
    """How one site of the winner is stored."""

    site: str
    kind: str
    form: str
    bits: float
    nbytes: int
    parameters: int


@dataclass(frozen=True)
class Run:
    """`kind`: `optimize`, `prove` or another verb. `met` is None where nothing was to be met."""

    id: str
    kind: str
    subject: str
    met: bool | None
    made_at: str = ""
    command: str = ""
    """The exact command that makes this again."""
    apply_command: str = ""
    """The command that applies the winner's recipe without a search."""
    recipe_toml: str = ""
    claim: str = ""
    paper: str = ""
    compared_with: str = ""
    limits: tuple[Limit, ...] = ()
    objective: str = ""
    """Metric that was minimised."""
    candidates: tuple[Shown, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    samples: tuple[Samples, ...] = ()
    bars: tuple[Bar, ...] = ()
    sites: tuple[SiteBits, ...] = ()
    loads: tuple[LoadRun, ...] = ()
    """Load runs, rates rising; the engine's before the simulator's."""
    share: float | None = None
    """Of the requests of a load run, that must be within the limits."""
    quality: Plain = field(default_factory=dict)
    """What was scored on held-out data, with interval ends as `NAME_low` and `NAME_high`."""
    workload: Plain = field(default_factory=dict)
    target: Plain = field(default_factory=dict)
    versions: Plain = field(default_factory=dict)
    seed: int | None = None
    threads: int | None = None
    notes: tuple[str, ...] = ()

    def find(self, role: str) -> Shown | None:
        """The first candidate of that role."""
        return next((candidate for candidate in self.candidates if candidate.role == role), None)

    def metrics(self) -> list[str]:
        """Every metric some candidate has a value of, known ones first in their usual order."""
        seen = {key for candidate in self.candidates for key in (*candidate.measured, *candidate.predicted)}
        return [key for key in KEYS if key in seen] + sorted(seen - set(KEYS))

    def values(self, metric: str) -> Sequence[float]:
        """Everything measured or predicted of one metric."""
        return [
            group[metric]
            for candidate in self.candidates
            for group in (candidate.measured, candidate.predicted)
            if metric in group
        ]
