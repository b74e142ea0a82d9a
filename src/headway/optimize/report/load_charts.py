"""What the charts of a load run draw, and how far the simulator is from the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headway.core.evidence import LoadRun
from headway.optimize.report.metrics import Metric, Unit, percent, significant

Json = dict[str, Any]

COLOURS = 6
"""`--rate-1` to `--rate-6` in the style, from the lowest rate to the highest."""

WAITS = {"ttft": "Time to first token", "tbt": "Time between tokens"}


def load_data(runs: Sequence[LoadRun]) -> Json:
    """As `report.js` expects it; curves in the unit of their axis, shares in percent."""
    if not runs:
        return {}
    places = colours(runs)
    scales = {key: _unit(runs, key) for key in WAITS}
    return {
        "runs": [
            {
                "by": run.by,
                "rate": run.rate,
                "said": said_rate(run.rate),
                "colour": places[run.rate],
                **{key: [value / unit.scale for value in quantiles(run, key)] for key, unit in scales.items()},
                "seconds": run.seconds,
                "at": list(run.timeline.at_s),
                "waiting": list(run.timeline.waiting),
                "running": list(run.timeline.running),
                "pages": [100 * share for share in run.timeline.pages],
                "attainment": None if run.attainment is None else 100 * run.attainment,
            }
            for run in runs
        ],
        "waits": {
            key: {"title": f"{WAITS[key].lower()}, {unit.text}", "unit": unit.text} for key, unit in scales.items()
        },
    }


def colours(runs: Sequence[LoadRun]) -> dict[float, int]:
    """Rate -> which of the `COLOURS`, spread over all of them."""
    rates = sorted({run.rate for run in runs})
    last = max(len(rates) - 1, 1)
    return {rate: 1 + round(place * (COLOURS - 1) / last) for place, rate in enumerate(rates)}


def said_rate(rate: float) -> str:
    return f"{rate:g}/s"


def quantiles(run: LoadRun, key: str) -> tuple[float, ...]:
    """Seconds at 0, 1 ... 100 %, of `ttft` or `tbt`."""
    return run.ttft_s if key == "ttft" else run.tbt_s


def _unit(runs: Sequence[LoadRun], key: str) -> Unit:
    """One for all: that of the median of the highest rate, so that most of the axis reads well."""
    found = [quantiles(run, key) for run in runs]
    return TIME.unit([max((values[50] for values in found if values), default=0.0)])


TIME = Metric("wait", "wait", "time")


@dataclass(frozen=True)
class Row:
    """One figure of one rate, as text; `error` of the simulator, None where there is nothing to divide."""

    rate: str
    colour: int
    what: str
    engine: str
    simulator: str
    error: float | None


def rows(runs: Sequence[LoadRun]) -> list[Row]:
    """Medians, tails, tokens per second, and attainment: engine beside simulator, rate by rate."""
    made = []
    places = colours(runs)
    for rate in sorted(places):
        pair = {run.by: run for run in runs if run.rate == rate}
        for what, kind, values in _figures(pair):
            real, guess = values
            error = guess / real - 1 if real and guess is not None and kind != "share" else None
            made.append(Row(said_rate(rate), places[rate], what, _write(kind, real), _write(kind, guess), error))
    return made


def _figures(pair: dict[str, LoadRun]) -> list[tuple[str, str, tuple[float | None, float | None]]]:
    """(what, kind, (engine's, simulator's))."""

    def both(read: Any) -> tuple[float | None, float | None]:
        real, guess = (pair.get(by) for by in ("engine", "simulator"))
        return (None if real is None else read(real)), (None if guess is None else read(guess))

    found = [
        (f"{WAITS[key]}, {name}", "time", both(lambda run, key=key, at=at: (quantiles(run, key) or [None] * 101)[at]))
        for key in WAITS
        for name, at in (("median", 50), ("p99", 99))
    ]
    found.append(("Answered tokens per second", "rate", both(lambda run: run.output_tok_s)))
    if any(run.attainment is not None for run in pair.values()):
        found.append(("Requests within the limits", "share", both(lambda run: run.attainment)))
    return found


def _write(kind: str, value: float | None) -> str:
    if value is None:
        return "–"
    if kind == "share":
        return percent(value)
    return TIME.write(value) if kind == "time" else significant(value)


def signed(error: float | None) -> str:
    """`+8.2%`."""
    return "" if error is None else f"{100 * error:+.1f}%".replace("-", "−")
