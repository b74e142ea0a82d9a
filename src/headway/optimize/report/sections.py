"""The parts of the page, each a function from a run to HTML; nothing where the run has nothing to show there."""

from __future__ import annotations

from headway.optimize.report import icons
from headway.optimize.report.charts import (
    accuracy_axes,
    axes,
    bits_summary,
    prediction_error,
    role_words,
)
from headway.optimize.report.hero import hero
from headway.optimize.report.load import load
from headway.optimize.report.markup import Child, Markup, render, tag
from headway.optimize.report.measurements import measurements
from headway.optimize.report.metrics import metric, percent
from headway.optimize.report.parts import card, chart, code, facts, head, legend, segments, table, tickbox
from headway.optimize.report.run import Run, Shown

NOTHING = Markup("")


def recipe(run: Run) -> Markup:
    """The winner's recipe and the exact commands that redo it."""
    if not run.recipe_toml and not run.command:
        return NOTHING
    called = "The winner's recipe" if run.met is not False else "The nearest recipe"
    left: list[Child] = []
    right: list[Child] = []
    if run.recipe_toml:
        left = [tag("h3", called), code(f"{run.id}-toml", run.recipe_toml, "recipe.toml")]
    if run.apply_command:
        right += [tag("h3", "Apply it again, without a search"), code(f"{run.id}-apply", run.apply_command)]
    if run.command:
        right += [tag("h3", "Redo the whole run"), code(f"{run.id}-redo", run.command)]
    notes = tag("ul", [tag("li", note) for note in run.notes], class_="notes") if run.notes else None
    title = "Recipe, and how to redo it" if run.recipe_toml else "How to redo it"
    return card(
        run, "recipe", title, tag("div", tag("div", left) if left else None, tag("div", right), class_="pair"), notes
    )


def front(run: Run) -> Markup:
    """The Pareto front as a scatter, and the same candidates as a table."""
    if len(run.candidates) < 2:
        return NOTHING
    plot: Child = None
    if "quality" in run.metrics() and axes(run):
        controls = [segments(run, "axis", "Horizontal axis", [(axis["key"], axis["label"]) for axis in axes(run)])]
        if any(candidate.predicted for candidate in run.candidates):
            controls.append(tickbox(run, "predicted", "predictions"))
        if any(limit.metric == "quality" for limit in run.limits):
            controls.append(tickbox(run, "close", "only near the quality limit"))
        chosen = [
            ("winner", "winner" if run.met is not False else "nearest"),
            ("baseline", "original"),
        ]
        keys = [
            *(chosen if run.kind != "bench" else []),
            ("front", "on the front"),
            ("measured", "measured, dominated"),
        ]
        if any(candidate.predicted for candidate in run.candidates):
            keys.append(("predicted", "predicted, tied to its measurement"))
        if run.limits:
            keys += [("limit", "budget limit"), ("allowed", "within the budget")]
        plot = tag(
            "figure",
            tag("div", controls, class_="controls"),
            chart(
                run,
                "front",
                "Scatter of every measured recipe: cost against quality. The table below has the same data.",
            ),
            legend(keys),
        )
    said = (
        "Every engine on the same prompt, text and threads, taking turns; quality is against the exact value of the "
        "weights as they came. Point at one, or choose its row, to see its numbers."
        if run.kind == "bench"
        else "Every recipe that was measured here. Point at one, or choose its row, to see its settings and numbers. "
        f"Times of the original and the {'winner' if run.met is not False else 'nearest'} are of the final run, "
        "where they were interleaved with each other; the others' are of the search."
    )
    return card(
        run,
        "front",
        "Engines beside each other" if run.kind == "bench" else "What was tried",
        tag("p", said, class_="small muted"),
        plot,
        tag("div", class_="chosen", aria_live="polite"),
        _candidates(run),
    )


def _candidates(run: Run) -> Markup:
    known = [key for key in run.metrics() if any(key in candidate.measured for candidate in run.candidates)]
    keys = sorted(known, key=lambda key: (key != "quality", key != run.objective))
    columns = head(
        ["Engine" if run.kind == "bench" else "Recipe", *(metric(key).label for key in keys)],
        right=range(1, len(keys) + 1),
    )
    order = {role: place for place, role in enumerate(("winner", "baseline", "front", "measured", "predicted"))}
    objective = run.objective or (keys[0] if keys else "")
    ranked = sorted(
        run.candidates,
        key=lambda one: (order.get(one.role, 9), {**one.predicted, **one.measured}.get(objective, float("inf"))),
    )
    rows = [
        tag(
            "tr",
            tag("td", _badge(run, one), tag("button", one.recipe, type="button", class_="pick"), class_="text"),
            [tag("td", _cell(one, key), class_="right") for key in keys],
            class_="winner" if one.role == "winner" else None,
            data_candidate=one.id,
        )
        for one in ranked
    ]
    return tag(
        "div",
        tag("table", tag("thead", columns), tag("tbody", rows)),
        class_="wide tall",
        tabindex="0",
        role="region",
        aria_label=f"Candidates: {run.kind} {run.subject}",
    )


def _badge(run: Run, candidate: Shown) -> Markup:
    word = {"baseline": "original", "front": "front", "winner": "winner" if run.met is not False else "nearest"}.get(
        candidate.role
    )
    return (
        tag("span", word, class_=f"badge {candidate.role}", title=role_words(run, candidate.role)) if word else NOTHING
    )


def _cell(candidate: Shown, key: str) -> Child:
    what = metric(key)
    predicted = candidate.predicted.get(key)
    aside = tag("small", f"predicted {what.write(predicted)}") if predicted is not None else None
    return [what.write(candidate.measured.get(key)), aside]


def bits(run: Run) -> Markup:
    """Which layers got how many bits."""
    if not run.sites:
        return NOTHING
    whole, weights = sum(site.nbytes for site in run.sites), sum(site.parameters for site in run.sites)
    columns = head(("Stored as", "Sites", "Bytes", "Share"), right=(1, 2, 3))
    rows = [
        tag(
            "tr",
            tag("td", name),
            tag("td", str(count), class_="right"),
            tag("td", metric("size_bytes").write(size), class_="right"),
            tag("td", percent(share), class_="right"),
        )
        for name, count, size, share in bits_summary(run.sites)
    ]
    mean = 8 * whole / weights if weights else 0.0
    classes = [("2", "≤ 2.5"), ("3", "3"), ("4", "4"), ("6", "5–6"), ("8", "8"), ("16", "16 and more")]
    return card(
        run,
        "bits",
        "Bits by layer",
        tag(
            "p",
            f"{len(run.sites)} sites hold {metric('size_bytes').write(whole)}: "
            f"{mean:.2f} bits per weight with scales and offsets.",
            class_="small muted",
        ),
        tag(
            "figure",
            chart(run, "bits", "Bits per weight of every site, by layer and role."),
            tag("ul", [tag("li", icons.swatch(name), f"{text} bits") for name, text in classes], class_="key"),
        ),
        table(run, columns, rows, "Bytes by form"),
    )


def accuracy(run: Run) -> Markup:
    """Predicted beside measured."""
    found = accuracy_axes(run)
    if not found:
        return NOTHING
    errors = [(metric(axis["key"]).label.lower(), prediction_error(run, axis["key"])) for axis in found]
    said = ", ".join(f"{label} {percent(error)}" for label, error in errors if error is not None)
    return card(
        run,
        "accuracy",
        "Predicted against measured",
        tag("p", f"Median error of the predictions that chose what to measure: {said}.", class_="small muted"),
        tag(
            "figure",
            tag(
                "div",
                segments(run, "guess", "Metric", [(axis["key"], axis["label"]) for axis in found]),
                class_="controls",
            ),
            chart(run, "accuracy", "Predicted against measured values; on the line they agree."),
            legend([("band", "equal, and ±20%")]),
        ),
    )


def bars(run: Run) -> Markup:
    """The bars of a proof: the paper's figure, the bar, the figure here."""
    if not run.bars:
        return NOTHING
    rows = [
        tag(
            "tr",
            tag("td", "✓ met" if bar.met else "✗ missed", class_="yes-text" if bar.met else "no-text"),
            tag("td", bar.name, class_="text"),
            tag("td", bar.paper or "–"),
            tag("td", bar.bar),
            tag("td", tag("strong", bar.here)),
        )
        for bar in run.bars
    ]
    intro = [
        tag("p", "Claim: ", run.claim, class_="small") if run.claim else None,
        tag("p", run.paper, class_="small muted") if run.paper else None,
    ]
    return card(
        run,
        "bars",
        "Bars of the proof",
        *intro,
        table(run, head(("Met", "Bar", "Paper", "Must be", "Here")), rows, "Bars"),
    )


def machine(run: Run) -> Markup:
    """The target's facts, the workload, versions and seed."""
    pairs: list[tuple[str, str]] = []
    for group in (run.target, {"seed": run.seed, "threads": run.threads, "made": run.made_at}, run.versions):
        pairs += [(str(key), str(value)) for key, value in group.items() if value not in (None, "")]
    work = [(str(key), str(value)) for key, value in run.workload.items()]
    if not pairs and not work:
        return NOTHING
    halves = [
        tag("div", tag("h3", title), facts(rows))
        for title, rows in (("Machine and versions", pairs), ("What the model was asked", work))
        if rows
    ]
    return card(run, "machine", "Measured on", tag("div", halves, class_="pair"))


SECTIONS = (bars, load, recipe, front, measurements, bits, accuracy, machine)
"""After the verdict, in this order."""

TITLES = {
    "recipe": "Recipe",
    "bars": "Bars",
    "load": "Under load",
    "front": "What was tried",
    "measurements": "How sure",
    "bits": "Bits",
    "accuracy": "Predictions",
    "machine": "Machine",
}


def title(run: Run, section: str) -> str:
    """How the contents call a section."""
    return "How to redo it" if section == "recipe" and not run.recipe_toml else TITLES[section]


def article(run: Run, alone: bool) -> Markup:
    """Everything about one run."""
    name = None if alone else tag("h2", f"{run.kind}: {run.subject}", class_="name")
    return tag(
        "article",
        name,
        hero(run, "h1" if alone else "h3"),
        [render(section(run)) for section in SECTIONS],
        class_="run",
        id=run.id,
    )
