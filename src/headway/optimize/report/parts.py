"""The pieces that sections are built of: cards, plots, keys, controls, tables, code to copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headway.optimize.report import icons
from headway.optimize.report.markup import Child, Markup, tag
from headway.optimize.report.run import Run


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    return tag("dl", [[tag("dt", name.replace("_", " ")), tag("dd", value)] for name, value in rows], class_="facts")


def card(run: Run, name: str, title: str, *children: Child) -> Markup:
    return tag("section", tag("h2", title), children, class_="card", id=f"{run.id}-{name}")


def chart(run: Run, name: str, spoken: str) -> Markup:
    return tag("div", class_="plot", data_chart=name, data_run=run.id, role="group", aria_label=spoken)


def legend(marks: Sequence[tuple[str, str]]) -> Markup:
    return tag("ul", [tag("li", icons.MARKS[name], text) for name, text in marks], class_="key")


def segments(run: Run, name: str, title: str, choices: Sequence[tuple[str, str]]) -> Markup:
    return tag(
        "fieldset",
        tag("legend", title),
        [
            tag(
                "label",
                tag("input", type="radio", name=f"{run.id}-{name}", value=value, checked=place == 0),
                tag("span", label),
            )
            for place, (value, label) in enumerate(choices)
        ],
        class_="seg",
    )


def tickbox(run: Run, name: str, label: str) -> Markup:
    return tag("label", tag("input", type="checkbox", data_check=name), label, class_="check")


def head(columns: Sequence[str], right: Sequence[int] = ()) -> Markup:
    """A table's head; the columns at the places `right` hold numbers."""
    return tag("tr", [tag("th", word, class_="right" if at in right else None) for at, word in enumerate(columns)])


def table(run: Run, head: Markup, rows: Sequence[Markup], label: str) -> Markup:
    return tag(
        "div",
        tag("table", tag("thead", head), tag("tbody", rows)),
        class_="wide",
        tabindex="0",
        role="region",
        aria_label=f"{label}: {run.kind} {run.subject}",
    )


def code(identifier: str, text: str, label: str = "") -> Markup:
    return tag(
        "div",
        tag("pre", tag("code", text.rstrip("\n"), id=identifier), tabindex="0", aria_label=label or "command"),
        tag("button", "Copy", type="button", class_="plain", data_copy=identifier),
        class_="code",
    )
