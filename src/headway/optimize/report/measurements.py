"""How sure the figures are: paired ratios beside the noise floor, every sample, and quality on held-out data."""

from __future__ import annotations

from headway.optimize.report.charts import floor_text, ratio_text, sample_groups, spread
from headway.optimize.report.markup import Child, Markup, tag
from headway.optimize.report.metrics import metric, significant
from headway.optimize.report.parts import card, chart, head, legend, segments, table
from headway.optimize.report.run import Run
from headway.optimize.report.words import ratio_words


def measurements(run: Run) -> Markup:
    """Nothing where the run timed and scored nothing."""
    parts = [*_ratios(run), *_samples(run), *_quality(run)]
    if not parts:
        return Markup("")
    twice = any(ratio.floor is not None for ratio in run.ratios) or any(arm.role == "again" for arm in run.samples)
    floor = (
        "and the baseline ran twice: its ratio to itself is the noise floor of this machine. A difference inside it is "
        "called none."
        if twice
        else "but the baseline ran only once, so the noise floor of this machine is not known."
    )
    told = tag("p", f"The arms ran interleaved in random order in one process, {floor}", class_="small muted")
    return card(run, "measurements", "How sure that is", told if run.ratios or run.samples else None, *parts)


def _ratios(run: Run) -> list[Child]:
    if not run.ratios:
        return []
    rows = [
        tag(
            "tr",
            tag(
                "td",
                ratio.label or metric(ratio.metric).label,
                tag("br"),
                tag("small", f"{ratio.candidate} ÷ {ratio.baseline}", class_="muted"),
                class_="text",
            ),
            tag("td", ratio_text(ratio), class_="right"),
            tag("td", floor_text(ratio.floor), class_="right"),
            tag("td", str(ratio.n), class_="right"),
            tag("td", ratio_words(ratio)),
        )
        for ratio in run.ratios
    ]
    keys = [("better", "better"), ("worse", "worse"), ("none", "no difference"), ("noise", "noise floor, A against A")]
    plot = chart(
        run, "ratios", "Median paired ratios with 95% intervals, the noise floor behind each; also in the table."
    )
    columns = head(("Compared", "Median ratio [95%]", "Noise floor", "Rounds", "So"), right=(1, 2, 3))
    return [tag("h3", "Ratios"), tag("figure", plot, legend(keys)), table(run, columns, rows, "Ratios")]


def _samples(run: Run) -> list[Child]:
    groups = sample_groups(run)
    if not groups:
        return []
    controls = [segments(run, "view", "View", [("spread", "spread"), ("order", "in order")])]
    if len(groups) > 1:
        choices = [(group["metric"], group["label"]) for group in groups]
        controls.insert(0, segments(run, "metric", "Metric", choices))
    keys = [("arm-baseline", "baseline"), ("arm-again", "baseline again (A against A)"), ("arm-candidate", "candidate")]
    plot = chart(
        run, "samples", "Every sample of every arm, with medians and quartiles; medians are in the table below."
    )
    rows = []
    for group in groups:
        what = group["unit"]
        for arm in group["arms"]:
            low, high = spread(arm["values"])
            numbers = [str(len(arm["values"])), what.write(low), what.write(arm["median"]), what.write(high)]
            cells = [tag("td", number, class_="right") for number in numbers]
            rows.append(tag("tr", tag("td", what.label), tag("td", arm["arm"], class_="text"), cells))
    columns = head(
        ("Metric", "Arm", "Samples", "Lower quartile", "Median", "Upper quartile"),
        right=(2, 3, 4, 5),
    )
    return [
        tag("h3", "Samples"),
        tag("figure", tag("div", controls, class_="controls"), plot, legend(keys)),
        tag("details", tag("summary", "Medians and quartiles"), table(run, columns, rows, "Samples")),
    ]


def _quality(run: Run) -> list[Child]:
    rows = []
    for key, value in run.quality.items():
        if not isinstance(value, int | float) or key.endswith(("_low", "_high")):
            continue
        low, high = run.quality.get(f"{key}_low"), run.quality.get(f"{key}_high")
        between = f"[{significant(low, 4)}, {significant(high, 4)}]" if low is not None and high is not None else "–"
        what = metric(key)
        numbers = [tag("td", text, class_="right") for text in (what.write(value), between)]
        rows.append(tag("tr", tag("td", what.label), numbers))
    if not rows:
        return []
    columns = head(("Against the original", "Here", "95% interval"), right=(1, 2))
    return [tag("h3", "Quality on held-out data"), table(run, columns, rows, "Quality")]
