"""The page: one HTML file with its style, its scripts and its data inside, and a policy that forbids anything else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from headway.core.version import __version__
from headway.optimize.report import icons, sections
from headway.optimize.report.charts import chart_data
from headway.optimize.report.markup import Markup, data_block, tag
from headway.optimize.report.run import Run
from headway.optimize.report.words import headline, verdict

SCRIPTS = ("vendor/vega.min.js", "vendor/vega-lite.min.js", "vendor/vega-embed.min.js", "report.js")
SPECS = ("front", "spread", "order", "ratios", "bits", "accuracy", "waits", "held", "attainment")
LICENCES = ("NOTICE", "LICENSE.vega")
GENERATOR = "headway-report"
"""By which a file is known to be a report."""


def page(runs: Sequence[Run], evidence: Sequence[Any] = ()) -> str:
    """The whole file as text. `evidence`: the JSON documents behind the runs, which the page can hand back."""
    scripts = [_file(name) for name in SCRIPTS]
    title = f"{headline(runs[0])}: {runs[0].subject}" if len(runs) == 1 else f"{len(runs)} experiments"
    data = {"specs": _specs(), "runs": [chart_data(run) for run in runs], "evidence": list(evidence)}
    head = tag(
        "head",
        Markup('<meta charset="utf-8">'),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="generator", content=f"{GENERATOR} {__version__}"),
        tag("title", f"{title} – Headway report"),
        tag("link", rel="icon", href=icons.FAVICON),
        tag("style", Markup(_file("report.css"))),
    )
    body = tag(
        "body",
        tag("a", "Skip to the verdict", href="#main", class_="skip"),
        _header(runs),
        _contents(runs),
        tag("main", _overview(runs), [sections.article(run, len(runs) == 1) for run in runs], id="main"),
        _footer(),
        data_block("report-data", data),
        [tag("script", Markup(script)) for script in scripts],
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: nothing is loaded, and only these very scripts run (no eval)."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


@cache
def _file(name: str) -> str:
    text = files("headway.optimize.report").joinpath(name).read_text(encoding="utf-8")
    if name.endswith(".js") and ("</script" in text.lower() or "<!--" in text):
        raise ValueError(f"{name} would end its own script element")
    return text


@cache
def _specs() -> dict[str, Any]:
    return {name: json.loads(_file(f"specs/{name}.json")) for name in SPECS}


def _header(runs: Sequence[Run]) -> Markup:
    made = max((run.made_at for run in runs), default="")
    return tag(
        "header",
        tag("span", icons.BRAND, "Headway", class_="brand"),
        tag(
            "span",
            f"report of {runs[0].kind} {runs[0].subject}" if len(runs) == 1 else f"report of {len(runs)} experiments",
            class_="muted",
        ),
        tag("span", made, class_="muted small") if made else None,
        class_="top",
    )


def _contents(runs: Sequence[Run]) -> Markup:
    if len(runs) == 1:
        run = runs[0]
        made = {section.__name__: section(run) for section in sections.SECTIONS}
        links = [tag("a", sections.title(run, name), href=f"#{run.id}-{name}") for name, html in made.items() if html]
    else:
        links = [tag("a", f"{run.kind}: {run.subject}", href=f"#{run.id}") for run in runs]
    return tag("nav", links, class_="toc", aria_label="Contents") if links else Markup("")


def _overview(runs: Sequence[Run]) -> Markup:
    """A table of verdicts, when there is more than one run."""
    if len(runs) == 1:
        return Markup("")
    judged = [run for run in runs if run.met is not None]
    held = sum(bool(run.met) for run in judged)
    kind = "" if not judged else ("yes" if held == len(judged) else "no")
    mark = {"yes": icons.CHECK, "no": icons.CROSS, "": icons.DOT}[kind]
    rows = [
        tag(
            "tr",
            tag(
                "td",
                "–" if run.met is None else ("✓ yes" if run.met else "✗ no"),
                class_={True: "yes-text", False: "no-text", None: None}[run.met],
            ),
            tag("td", tag("a", f"{run.kind}: {run.subject}", href=f"#{run.id}")),
            tag("td", verdict(run), class_="text"),
        )
        for run in runs
    ]
    said = f"{held} of {len(judged)} hold" if judged else f"{len(runs)} experiments"
    return tag(
        "section",
        tag("h1", tag("span", mark, class_="mark"), said),
        tag("div", tag("table", tag("tbody", rows)), class_="wide"),
        class_=f"card hero {kind}",
    )


def _footer() -> Markup:
    return tag(
        "footer",
        tag(
            "p",
            f"Made by headway {__version__} from evidence on this machine. This file loads nothing and sends nothing. ",
            tag("button", "Save the evidence as JSON", type="button", class_="plain", id="save-data"),
        ),
        tag("noscript", tag("p", "Charts need JavaScript; every number is in the tables.")),
        tag(
            "details",
            tag("summary", "Licences of the scripts inside"),
            [tag("pre", _file(f"vendor/{name}")) for name in LICENCES],
        ),
    )
