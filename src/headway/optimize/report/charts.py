"""What the charts draw: the values and the ready-made texts that `report.js` puts into the specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from headway.optimize.report.load_charts import load_data
from headway.optimize.report.metrics import METRICS, Metric, metric, percent, significant
from headway.optimize.report.run import Ratio, Run, Shown, SiteBits
from headway.optimize.report.words import change, gain, ratio_words

ROLES: Mapping[str, str] = {
    "winner": "the winner",
    "nearest": "the nearest to the budget",
    "baseline": "the original, unmodified",
    "front": "on the front: nothing measured is better everywhere",
    "measured": "measured; another recipe is better on every axis",
    "predicted": "predicted only, never measured",
}

SIGNS: Mapping[str, str] = {"<=": "≤", ">=": "≥", "<": "<", ">": ">"}

Json = dict[str, Any]


def chart_data(run: Run) -> Json:
    """The run as `report.js` expects it."""
    return {
        "id": run.id,
        "winnerName": "winner" if run.met is not False else "nearest",
        "candidates": [_candidate(run, candidate) for candidate in run.candidates],
        "axes": axes(run),
        "quality": _quality(run),
        "limits": [
            {
                "metric": limit.metric,
                "op": "<=" if limit.at_most else ">=",
                "limit": limit.limit,
                "label": limit_label(limit.metric, limit.op, limit.limit),
            }
            for limit in run.limits
        ],
        "samples": [{**group, "unit": None} for group in sample_groups(run)],
        "ratios": [_ratio(ratio) for ratio in run.ratios],
        "sites": cells(run.sites)[0],
        "sitesAxis": cells(run.sites)[1],
        "accuracy": accuracy_axes(run),
        "load": load_data(run.loads) | {"share": None if run.share is None else 100 * run.share},
    }


def limit_label(key: str, op: str, limit: float) -> str:
    what = metric(key)
    return f"{what.label.lower()} {SIGNS[op]} {what.write(limit, exact=True)}"


def role_words(run: Run, role: str) -> str:
    return ROLES["nearest" if role == "winner" and run.met is False else role]


def axes(run: Run) -> list[Json]:
    """Metrics that trade against quality, those with measured values in at least two candidates; budget's first."""
    counted = [
        key
        for key in run.metrics()
        if metric(key).kind != "share" and sum(key in candidate.measured for candidate in run.candidates) > 1
    ]
    first = [run.objective, *(limit.metric for limit in run.limits)]
    order = [key for key in dict.fromkeys(first) if key in counted]
    return [_axis(run, metric(key)) for key in order + [key for key in counted if key not in order]]


def accuracy_axes(run: Run) -> list[Json]:
    """Metrics both predicted and measured for at least one candidate."""
    both = [
        key
        for key in run.metrics()
        if any(key in candidate.measured and key in candidate.predicted for candidate in run.candidates)
    ]
    return [_axis(run, metric(key)) for key in both]


def prediction_error(run: Run, key: str) -> float | None:
    """Median of |predicted / measured - 1| over the candidates that have both."""
    errors = [
        abs(candidate.predicted[key] / candidate.measured[key] - 1)
        for candidate in run.candidates
        if key in candidate.predicted and candidate.measured.get(key)
    ]
    return median(errors) if errors else None


def _axis(run: Run, what: Metric) -> Json:
    unit = what.unit(run.values(what.key))
    title = f"{what.label.lower()}, {unit.text}" if unit.text else what.label.lower()
    arrow = "" if what.kind == "share" else (" (less is better)" if what.lower_is_better else " (more is better)")
    return {
        "key": what.key,
        "label": what.label,
        "title": title + arrow,
        "scale": unit.scale,
        "lower": what.lower_is_better,
    }


def _quality(run: Run) -> Json:
    return {"key": "quality", "title": "quality (1 = as the original)"} if "quality" in run.metrics() else {"key": ""}


def _candidate(run: Run, candidate: Shown) -> Json:
    return {
        "id": candidate.id,
        "recipe": candidate.recipe,
        "role": candidate.role,
        "called": role_words(run, candidate.role),
        "measured": dict(candidate.measured),
        "predicted": dict(candidate.predicted),
        "rows": table_rows(run, candidate),
        "spoken": spoken(run, candidate),
    }


def table_rows(run: Run, candidate: Shown) -> list[tuple[str, str, str, str]]:
    """(label, measured, predicted, change against the baseline) of every metric the candidate has."""
    baseline = run.find("baseline")
    rows = []
    for key in run.metrics():
        measured, predicted = candidate.measured.get(key), candidate.predicted.get(key)
        if measured is None and predicted is None:
            continue
        what = metric(key)
        before = baseline.measured.get(key) if baseline is not None and baseline is not candidate else None
        if candidate.role == "winner":
            words = gain(run, key, before, measured)
        else:  # its times are of another run than the baseline's
            words = "" if what.kind in ("time", "rate") else change(key, before, measured)
        rows.append((what.label, what.write(measured), what.write(predicted), words))
    return rows


def spoken(run: Run, candidate: Shown) -> str:
    """One line for a screen reader."""
    values = [
        f"{METRICS[key].label.lower()} {METRICS[key].write(value)}"
        for key, value in candidate.measured.items()
        if key in METRICS
    ]
    return f"{candidate.recipe}, {role_words(run, candidate.role)}: {', '.join(values)}"


def sample_groups(run: Run) -> list[Json]:
    """Samples by metric; each arm with its quartiles."""
    groups: dict[str, list[Json]] = {}
    units: dict[str, Metric] = {}
    for samples in run.samples:
        if not samples.values:
            continue
        low, high = spread(samples.values)
        what = units.setdefault(samples.metric, metric(samples.metric, samples.unit))
        groups.setdefault(samples.metric, []).append(
            {
                "arm": samples.arm,
                "role": samples.role,
                "values": list(samples.values),
                "said": [what.write(value, 4) for value in samples.values],
                "low": low,
                "median": median(samples.values),
                "high": high,
            }
        )
    made = []
    for key, arms in groups.items():
        arms.sort(key=lambda arm: ("baseline", "again", "candidate").index(arm["role"]))
        what = units[key]
        unit = what.unit([max(arm["values"]) for arm in arms])
        title = f"{what.label.lower()}, {unit.text}" if unit.text else what.label.lower()
        made.append(
            {"metric": key, "label": what.label, "title": title, "scale": unit.scale, "unit": what, "arms": arms}
        )
    return made


def spread(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


def ratio_text(ratio: Ratio) -> str:
    if ratio.low <= 0 or ratio.high == float("inf"):
        return significant(ratio.value)
    return f"{significant(ratio.value)} [{significant(ratio.low)}, {significant(ratio.high)}]"


def floor_text(floor: float | None) -> str:
    if floor is None:
        return "not measured"
    return f"±{percent(floor)}" if floor != float("inf") else "unknown"


def _ratio(ratio: Ratio) -> Json:
    floor = ratio.floor if ratio.floor is not None and ratio.floor != float("inf") else 0.0
    standing = {"faster": "better", "slower": "worse", "too few pairs": "none"}.get(ratio.verdict, ratio.verdict)
    return {
        "label": metric(ratio.metric).label if ratio.label == "" else ratio.label,
        "value": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "floorLow": 1 / (1 + floor),
        "floorHigh": 1 + floor,
        "standing": standing,
        "said": ratio_text(ratio),
        "floorSaid": floor_text(ratio.floor),
        "words": ratio_words(ratio),
    }


def cells(sites: Sequence[SiteBits]) -> tuple[list[Json], str]:
    """One cell per site, in rows of equal role, and what the columns are.

    A site's role is its name without numbers; its column is the one number in it, or its place among its role's.
    """
    roles: dict[str, int] = {}
    single = all(sum(part.isdigit() for part in site.site.split(".")) <= 1 for site in sites)
    made = []
    for site in sites:
        parts = site.site.split(".")
        numbers = [int(part) for part in parts if part.isdigit()]
        role = ".".join(part for part in parts if not part.isdigit())
        role = role.removeprefix("layers.").removeprefix("blocks.") if numbers else role
        place = roles.get(role, 0)
        roles[role] = place + 1
        made.append(
            {
                "site": site.site,
                "role": role,
                "column": numbers[0] if single and numbers else place,
                "bits": site.bits,
                "short": significant(site.bits, 2),
                "form": site.form,
                "saidBits": significant(site.bits),
                "saidBytes": METRICS["size_bytes"].write(site.nbytes),
                "saidWeights": f"{site.parameters:,}".replace(",", "\u202f"),
            }
        )
    return made, "layer" if single else "place among its kind, in execution order"


def bits_summary(sites: Sequence[SiteBits]) -> list[tuple[str, int, int, float]]:
    """(form and bits, sites, bytes, share of all bytes), the largest share first."""
    total = sum(site.nbytes for site in sites) or 1
    groups: dict[str, list[SiteBits]] = {}
    for site in sites:
        groups.setdefault(f"{site.form}, {significant(site.bits, 2)} bits", []).append(site)
    rows = [
        (name, len(group), sum(site.nbytes for site in group), sum(site.nbytes for site in group) / total)
        for name, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row[2])
