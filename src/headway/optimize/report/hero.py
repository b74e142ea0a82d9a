"""The verdict: met or not, how every limit stands, and the winner's numbers beside the original's."""

from __future__ import annotations

from headway.optimize.report import icons
from headway.optimize.report.charts import limit_label
from headway.optimize.report.markup import Markup, tag
from headway.optimize.report.metrics import metric
from headway.optimize.report.run import Limit, Run
from headway.optimize.report.words import gain, headline, standing, verdict


def hero(run: Run, heading: str = "h1") -> Markup:
    """The verdict first: met or not, by how much."""
    met = run.met if run.limits or run.bars or run.loads else None  # nothing was asked that could be met
    kind = {True: "yes", False: "no", None: ""}[met]
    mark = {True: icons.CHECK, False: icons.CROSS, None: icons.DOT}[met]
    winner = run.find("winner")
    return tag(
        "section",
        tag(heading, tag("span", mark, class_="mark"), headline(run)),
        tag("p", verdict(run), class_="said"),
        tag("p", tag("code", winner.recipe)) if winner is not None else None,
        tag("ul", [_limit(limit) for limit in run.limits], class_="limits") if run.limits else None,
        _tiles(run),
        class_=f"card hero {kind}",
        id=f"{run.id}-verdict",
    )


def _limit(limit: Limit) -> Markup:
    what = metric(limit.metric)
    here, bound, low, high = limit.here, limit.limit, 0.0, 0.0
    if here is not None:
        if what.kind == "share" and not limit.at_most:
            low = min(here, bound) - 2 * max(abs(here - bound), abs(1 - bound), 0.005)
            high = max(1.0, here, bound)
        else:
            high = 1.12 * max(here, bound) or 1.0
    place = (lambda value: 100 * (value - low) / (high - low)) if high > low else (lambda value: 0.0)
    gauge = tag(
        "div",
        tag("i", style=f"width:{place(here):.1f}%") if here is not None else None,
        tag("b", style=f"left:{place(bound):.1f}%") if here is not None else None,
        class_="gauge",
        aria_hidden="true",
    )
    return tag(
        "li",
        tag(
            "div",
            tag("span", what.label, class_="small muted"),
            tag("span", _mark(limit.met), standing(limit), class_="state"),
            class_="line",
        ),
        tag("div", what.write(here), class_="here num"),
        gauge,
        tag("div", f"limit: {limit_label(limit.metric, limit.op, bound)}", class_="small muted"),
        class_=f"limit {'met' if limit.met else 'missed'}",
    )


def _mark(met: bool) -> str:
    return "✓ " if met else "✗ "


def _tiles(run: Run) -> Markup:
    winner, baseline = run.find("winner"), run.find("baseline")
    if winner is None:
        return Markup("")
    tiles = []
    for key in run.metrics():
        if key not in winner.measured:
            continue
        what = metric(key)
        before = baseline.measured.get(key) if baseline else None
        words = gain(run, key, before, winner.measured[key])
        aside = f"original {what.write(before)}" + (f" · {words}" if words else "") if before is not None else ""
        tiles.append(
            tag(
                "div",
                tag("dt", what.label),
                tag("dd", what.write(winner.measured[key]), tag("small", aside)),
                class_="tile",
            )
        )
    return tag("dl", tiles, class_="tiles") if tiles else Markup("")
