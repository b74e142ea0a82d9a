"""The verdict in words: met or not, by how much, and what can be said of a ratio on this machine."""

from __future__ import annotations

import math

from headway.optimize.report.metrics import metric, percent, times
from headway.optimize.report.run import Limit, Ratio, Run, Shown

CHOSEN = ("winner", "nearest")
"""Names of the arm that the run chose."""


TIMES_OF = {"throughput_tok_s": "tpot_s", "throughput_per_s": "latency_s"}
"""Rates that are nothing but the inverse of a time."""


def headline(run: Run) -> str:
    """A few words that answer the question the run asked."""
    if run.met is None:
        return "Measured"
    if run.loads:
        return "Within the limits" if run.met else "Not within the limits at every rate"
    if run.kind == "prove":
        return "The claim holds here" if run.met else "The claim does not hold here"
    if not run.limits and run.met:
        return "Done"
    return "Budget met" if run.met else "Budget not met"


def verdict(run: Run) -> str:
    """One or two sentences: what was brought to what, and the nearest miss when the answer is no."""
    if run.bars and not run.candidates:
        held = sum(bar.met for bar in run.bars)
        which = "all" if held == len(run.bars) else f"{held} of {len(run.bars)}"
        sentence = f"{run.subject}: {which} bars hold" + (
            f" against {run.compared_with}." if run.compared_with else "."
        )
        return sentence
    if run.loads:
        return _load(run)
    winner, baseline = run.find("winner"), run.find("baseline")
    if winner is None:
        return f"{run.subject} was measured as it is." if baseline else run.subject
    misses = [limit for limit in run.limits if not limit.met]
    if not run.met and misses:
        said = " and ".join(f"{_name(limit)} {miss(limit)}" for limit in misses)
        return f"No recipe found brings {run.subject} under every limit. The nearest misses {said}."
    gains = _gains(run, winner, baseline)
    return f"{run.subject} at {gains}." if gains else f"{run.subject} with {winner.recipe}."


def _load(run: Run) -> str:
    """What a load run found, of the engine."""
    real = [one for one in run.loads if one.by == "engine"]
    rates = f"{run.subject} under load, {', '.join(f'{one.rate:g}' for one in real)} requests per second"
    if run.share is None:
        return f"{rates}; no limits were given."
    held = [one for one in real if one.attainment is not None and one.attainment >= run.share]
    least = f"at least {percent(run.share)} of the requests are within {run.workload.get('limits', 'the limits')}"
    if len(held) == len(real):
        return f"{rates}: {least} at each."
    which = " and ".join(f"{one.rate:g}/s" for one in held)
    return f"{rates}: {least} at {which} only." if held else f"{rates}: at none of them {least}."


def miss(limit: Limit) -> str:
    """How far a limit is missed, e.g. `by 18% (7.1 ms/token against at most 6 ms/token)`."""
    what = metric(limit.metric)
    if limit.here is None:
        return "(nothing was measured)"
    bound = {"<=": "at most", "<": "less than", ">=": "at least", ">": "more than"}[limit.op]
    return f"{_beyond(limit)}({what.write(limit.here)} against {bound} {what.write(limit.limit, exact=True)})"


def _beyond(limit: Limit) -> str:
    if limit.spare is None or limit.here is None:
        return ""
    if limit.at_most and limit.spare < -1:
        return f"by far, at {times(limit.here / limit.limit)} the limit "
    return f"by {percent(-limit.spare)} "


def standing(limit: Limit) -> str:
    """A limit in short: `32% to spare`, `missed by 18%`, `just met`."""
    if limit.here is None:
        return "not measured"
    if limit.spare is None:
        return "met" if limit.met else "missed"
    if limit.met:
        return f"{percent(limit.spare)} to spare" if limit.spare >= 5e-5 else "just met"
    return f"missed {_beyond(limit).strip()}"


def change(key: str, before: float | None, after: float | None) -> str:
    """`5.1× smaller`, `1.2× slower`, or nothing where there is no ratio to speak of."""
    if not before or not after or before <= 0 or after <= 0:
        return ""
    what = metric(key)
    if what.kind == "share":
        return ""
    ratio = after / before
    if 0.995 < ratio < 1.005:
        return "the same"
    improved = (ratio < 1) == what.lower_is_better
    return f"{times(max(ratio, 1 / ratio))} {what.better if improved else what.worse}"


def gain(run: Run, key: str, before: float | None, after: float | None) -> str:
    """How the winner changed a metric: by the paired ratio where there is one, else from the two values."""
    if before is None or after is None:
        return ""
    timed = TIMES_OF.get(key, key)
    paired = next((ratio for ratio in run.ratios if ratio.metric == timed and ratio.candidate in CHOSEN), None)
    if paired is None:
        return change(key, before, after)
    words = ratio_words(paired)
    # The quotient of the two times beside it is another: they are medians of each alone.
    return f"{words} in pairs" if words.endswith(paired.verdict) else words


def ratio_words(ratio: Ratio) -> str:
    """What the comparison allows to say; a difference inside the noise floor is none."""
    if not math.isfinite(ratio.high) or ratio.low <= 0:
        return f"too few pairs ({ratio.n}) to say"
    if ratio.verdict == "none":
        return "no difference beyond the noise"
    size = max(ratio.value, 1 / ratio.value)
    return f"{times(size) if size >= 1.195 else percent(size - 1)} {ratio.verdict}"


def _name(limit: Limit) -> str:
    label = metric(limit.metric).label
    return label[0].lower() + label[1:]


def _gains(run: Run, winner: Shown, baseline: Shown | None) -> str:
    said = []
    order = [run.objective, *(limit.metric for limit in run.limits), "size_bytes", "quality"]
    for key in dict.fromkeys(key for key in order if key):
        after = winner.measured.get(key)
        if after is None:
            continue
        what = metric(key)
        if what.kind == "share":
            said.append(f"{what.label.lower()} {what.write(after)}")
            continue
        words = gain(run, key, baseline.measured.get(key) if baseline else None, after)
        said.append(f"{what.write(after)}" + (f" ({words})" if words and words != "the same" else ""))
    return ", ".join(said)
