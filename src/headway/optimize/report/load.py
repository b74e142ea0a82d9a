"""A load run: how long requests waited at each rate, what was held over time, and the simulator beside the engine."""

from __future__ import annotations

from statistics import median

from headway.optimize.report import icons
from headway.optimize.report.load_charts import WAITS, Row, colours, rows, said_rate, signed
from headway.optimize.report.markup import Child, Markup, tag
from headway.optimize.report.metrics import percent
from headway.optimize.report.parts import card, chart, head, legend, segments, table
from headway.optimize.report.run import Run

LINES = [("line", "engine, measured"), ("dashed", "simulator")]
HELD = {
    "waiting": "Requests that wait",
    "running": "Requests that run",
    "pages": "Pages of keys and values in use",
}


def load(run: Run) -> Markup:
    """Nothing where there was no load run."""
    if not run.loads:
        return Markup("")
    figures = rows(run.loads)
    said = (
        "The same requests at every rate, on the engine of the server and in its simulator, which runs the same "
        "scheduler over batches measured apart. "
        f"The simulator is off by, in the median over the rates: {_errors(figures)}."
    )
    return card(
        run, "load", "Under load", tag("p", said, class_="small muted"),
        tag("h3", "Waits"), _waits(run),
        tag("h3", "Queue and memory over time"), _held(run),
        *_attainment(run),
        tag("h3", "Engine and simulator"), _table(run, figures),
    )  # fmt: skip


def _errors(figures: list[Row]) -> str:
    """The median of each figure's error over the rates."""
    found: dict[str, list[float]] = {}
    for row in figures:
        if row.error is not None and row.what.startswith(tuple(WAITS.values())):
            found.setdefault(row.what, []).append(abs(row.error))
    return ", ".join(f"{what[0].lower()}{what[1:]} {percent(median(errors))}" for what, errors in found.items())


def _rates(run: Run) -> list[Markup]:
    """A key of the rates' colours."""
    return [
        tag("li", icons.rate(colour), said_rate(rate)) for rate, colour in sorted(colours(run.loads).items())
    ]  # fmt: skip


def _waits(run: Run) -> Markup:
    lines = [tag("li", icons.MARKS[name], text) for name, text in LINES]
    return tag(
        "figure",
        tag("div", segments(run, "wait", "What", list(WAITS.items())), class_="controls"),
        chart(run, "waits", "Share of requests, or of pairs of tokens, that waited at most so long, by rate."),
        tag("ul", _rates(run), lines, class_="key"),
    )


def _held(run: Run) -> Markup:
    rates = [said_rate(rate) for rate in sorted(colours(run.loads))]
    plots = [
        [tag("figcaption", title), chart(run, name, f"{title}, over the time of the run.")]
        for name, title in HELD.items()
    ]
    return tag(
        "figure",
        tag("div", segments(run, "rate", "Rate", [(rate, rate) for rate in rates]), class_="controls"),
        plots,
        legend(LINES),
    )


def _attainment(run: Run) -> list[Child]:
    if all(one.attainment is None for one in run.loads):
        return []
    limits = run.workload.get("limits", "")
    return [
        tag("h3", "Requests within the limits, by rate"),
        tag("p", f"Limits: {limits}.", class_="small muted") if limits else None,
        tag(
            "figure",
            chart(run, "attainment", "Share of the requests within the limits at each rate; also in the table."),
            legend([*LINES, ("limit", "must be within them")] if run.share is not None else LINES),
        ),
    ]


def _table(run: Run, figures: list[Row]) -> Markup:
    made = []
    for place, row in enumerate(figures):
        if place == 0 or figures[place - 1].rate != row.rate:
            title = tag("th", icons.rate(row.colour), f" {row.rate}", colspan="4", scope="rowgroup")
            made.append(tag("tr", title, class_="group"))
        numbers = (row.engine, row.simulator, signed(row.error))
        made.append(tag("tr", tag("td", row.what), [tag("td", number, class_="right") for number in numbers]))
    columns = head(("At each rate", "Engine", "Simulator", "Error"), right=(1, 2, 3))
    counts = [
        f"{one.by} at {said_rate(one.rate)}: {one.finished} of {one.requests} finished in {one.seconds:.1f} s, "
        f"{one.rejected} turned away, {one.preemptions} put back for want of pages (of {one.pages})"
        for one in run.loads
    ]
    return tag(
        "div",
        table(run, columns, made, "Engine and simulator"),
        tag("details", tag("summary", "Counts"), tag("ul", [tag("li", text) for text in counts], class_="notes")),
    )
