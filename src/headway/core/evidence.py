"""`Evidence`: what one experiment measured: every sample, the comparisons made of them, and what it ran on."""

from __future__ import annotations

import math
import platform
import statistics
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headway.core.decode import check_schema, decode
from headway.core.files import atomic_write_json, read_json
from headway.core.jsontext import plain
from headway.core.statistics import too_few
from headway.core.units import show

if TYPE_CHECKING:
    from headway.core.measure import Timing
    from headway.core.model import Model
    from headway.core.target import Target

SCHEMA = 1
MOMENTS = 400


@dataclass(frozen=True)
class Series:
    """Every sample of one arm of one measurement, in the order taken."""

    measurement: str
    """What was measured, e.g. `tpot_s`; arms of one measurement were interleaved in one run."""
    arm: str
    unit: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Ratio:
    """Candidate over baseline: the median of paired ratios with a 95% interval, beside the noise floor."""

    measurement: str
    candidate: str
    baseline: str
    value: float
    low: float
    high: float
    pairs: int
    noise_floor: float | None
    """Largest relative difference the baseline showed against itself; None where it was not run twice.

    Infinite, and so null in JSON, for too few pairs.
    """
    verdict: str
    """`faster`, `slower`, `none` or `too few pairs`; for a quality `better`, `worse` or `none`."""


@dataclass(frozen=True)
class Bar:
    """A claim: the paper's figure, the bar set for this machine, and the figure here."""

    name: str
    paper: str
    bar: str
    here: str
    met: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Timeline:
    """What an engine held over time, at most `MOMENTS` of them; all of one length."""

    at_s: tuple[float, ...]
    """From the first moment of the run."""
    waiting: tuple[float, ...]
    """Requests without pages; the most in the interval that ends here, as of the others."""
    running: tuple[float, ...]
    """Requests that hold pages."""
    pages: tuple[float, ...]
    """Share of the pages of keys and values in use."""


@dataclass(frozen=True)
class LoadRun:
    """One load run at one rate: of the real engine, or of the simulator."""

    by: Literal["engine", "simulator"]
    rate: float
    """Requests per second."""
    requests: int
    finished: int
    rejected: int
    preemptions: int
    pages: int
    """Pages of keys and values that the engine had."""
    seconds: float
    output_tok_s: float
    total_tok_s: float
    """Tokens of prompts and answers."""
    attainment: float | None
    """Share of the requests within the SLO; None: none was given."""
    ttft_s: tuple[float, ...]
    """Quantiles at 0, 1 ... 100 % over requests; empty where no request got a token."""
    tbt_s: tuple[float, ...]
    """The same of the time between two tokens of a request, over all pairs of tokens."""
    timeline: Timeline


@dataclass
class Evidence:
    """One experiment. Filled while it runs; written once."""

    experiment: str
    """The verb that made it: `optimize`, `prove`, `bench`, `apply`."""
    subject: str
    """What it is about: a model's name, or the slug of the system that was proven."""
    target: Mapping[str, str]
    """Name and fingerprint of the machine."""
    seed: int
    threads: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    made_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    command: str = ""
    model: Mapping[str, str] = field(default_factory=dict)
    """Name and fingerprint of the model; `given`, what to load it by, where that was text."""
    recipe: list[dict[str, Any]] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    conditions: Mapping[str, Any] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    load_runs: list[LoadRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    """The verb's own answer as JSON (for `optimize`: budget, baseline, winner, front ...)."""

    @classmethod
    def begin(cls, experiment: str, subject: str, target: Target, seed: int, threads: int) -> Evidence:
        return cls(experiment, subject, {"name": target.name, "fingerprint": target.fingerprint}, seed, threads)

    def about(self, model: Model) -> Evidence:
        """Name the model; gives the evidence."""
        self.model = {"name": model.name, "fingerprint": model.fingerprint()}
        if model.given:
            self.model = {**self.model, "given": model.given}
        return self

    @property
    def met(self) -> bool:
        """Whether every bar is met (true when there is none)."""
        return all(bar.met for bar in self.bars)

    def add_timing(self, measurement: str, timing: Timing, unit: str = "s", per_call: int = 1) -> list[Ratio]:
        """Keep every sample of an interleaved run and the comparisons made of them; gives those.

        `per_call`: units in one call (tokens of a decode loop), so that samples are seconds per unit.
        """
        for arm, samples in timing.samples.items():
            self.series.append(Series(measurement, arm, unit, tuple(s / per_call for s in samples)))
        made = [
            Ratio(
                measurement,
                comparison.candidate,
                comparison.baseline,
                comparison.ratio.value,
                comparison.ratio.low,
                comparison.ratio.high,
                timing.rounds,
                comparison.noise_floor,
                str(comparison.verdict),
            )
            for comparison in timing.comparisons
        ]
        self.ratios += made
        self.conditions = {**self.conditions, measurement: timing.conditions}
        return made

    def bar(self, name: str, paper: str, bar: str, here: str, met: bool) -> Bar:
        """Judge one claim."""
        judged = Bar(name, paper, bar, here, bool(met))
        self.bars.append(judged)
        return judged

    def table(self) -> str:
        """What was measured, against what, for people: the noise floor beside every ratio."""
        machine = self.target.get("name", "an unknown target")
        lines = [f"{self.experiment} {self.subject} on {machine}, {self.threads} threads, {self.made_at}"]
        for ratio in self.ratios:
            floor = "not measured" if ratio.noise_floor is None else f"±{100 * ratio.noise_floor:.1f}%"
            said = f"  {ratio.measurement}: {ratio.candidate} / {ratio.baseline} = {ratio.value:.3f}"
            if math.isfinite(ratio.high):
                said += f" [{ratio.low:.3f}, {ratio.high:.3f}]{self._medians(ratio)}, {ratio.pairs} pairs, "
                lines.append(f"{said}noise floor {floor}: {ratio.verdict}")
            else:
                lines.append(f"{said}{self._medians(ratio)}, {too_few(ratio.pairs)}")
        for name, value in self.quality.items():
            lines.append(f"  {name} = {value:.4f}")
        for bar in self.bars:
            lines.append(
                f"  {'met   ' if bar.met else 'MISSED'} {bar.name}: here {bar.here}, bar {bar.bar}; paper: {bar.paper}"
            )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _medians(self, ratio: Ratio) -> str:
        """` (4.59 ms against 6.12 ms)`, where the samples behind the ratio are here."""
        found = [
            show(statistics.median(series.values), series.unit)
            for arm in (ratio.candidate, ratio.baseline)
            for series in self.series
            if (series.measurement, series.arm) == (ratio.measurement, arm) and series.values
        ]
        return f" ({found[0]} against {found[1]})" if len(found) == 2 else ""

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = plain({"schema": SCHEMA, **asdict(self)})
        return document

    @classmethod
    def from_json(cls, document: Any, source: str | Path = "evidence") -> Evidence:
        """The inverse of `to_json`; raises `BadInput` naming the field that is missing, unknown or wrong.

        Numbers that were not finite come back as NaN.
        """
        check_schema(document, SCHEMA, str(source))
        return decode(cls, {key: value for key, value in document.items() if key != "schema"}, str(source))

    def save(self, path: str | Path) -> None:
        atomic_write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """Raises `BadInput` for a missing file, `BadFile` for one that is no JSON; see `from_json`."""
        return cls.from_json(read_json(path), path)


def versions() -> dict[str, str]:
    """Versions of what a measurement depends on; of optional packages only those in use."""
    from headway.core.version import __version__

    found = {"headway": __version__, "python": platform.python_version(), "kernel": platform.release()}
    for name in ("numpy", "torch", "scipy", "transformers", "onnxruntime"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found
