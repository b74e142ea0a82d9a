"""From `Evidence` to `Run`: which keys of a verb's result the page reads, and how it names what it finds."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from headway.core import evidence as core
from headway.core.budget import OBJECTIVES, Budget, Objective
from headway.core.errors import BadInput
from headway.core.measure import AGAIN
from headway.core.recipe import Recipe
from headway.core.registry import systems
from headway.core.target import Target
from headway.optimize.candidate import Candidate, pareto
from headway.optimize.report.metrics import metric
from headway.optimize.report.run import Bar, Limit, Ratio, Run, Samples, Shown, SiteBits

LONG = 2
"""Items of a list setting that a recipe's short form shows."""


def run_of(evidence: core.Evidence, identifier: str, target: Target | None = None) -> Run:
    """The page's view of one piece of evidence.

    Read of `evidence.result`: `met`, `budget` (text), `minimize`, `baseline`, `winner`, `front`, `candidates` (all that
    were measured), `sites` (see `site_bits`), `workload`, `share`, `artifact`, `compared_with`. Any may be missing.
    """
    result = evidence.result
    winner = _candidate(result.get("winner"))
    candidates = _engines(result["engines"]) if "engines" in result else _candidates(result, _medians(evidence))
    best = {**winner.predicted, **winner.measured} if winner else {}
    recipe = Recipe.from_json(evidence.recipe or (result.get("winner") or {}).get("recipe", []))
    card = systems()[evidence.subject].card if evidence.subject in systems() else None
    return Run(
        id=identifier,
        kind=evidence.experiment,
        subject=evidence.subject,
        met=bool(result["met"]) if "met" in result else (evidence.met if evidence.bars else None),
        made_at=evidence.made_at,
        command=evidence.command,
        apply_command=_apply_command(evidence, recipe),
        recipe_toml=recipe.to_toml() if recipe.steps else "",
        claim=card.claim if card and evidence.bars else "",
        paper=card.paper if card and evidence.bars else "",
        compared_with=str(result.get("compared_with", "")),
        limits=_limits(result.get("budget"), best),
        objective=_objective(result.get("minimize"), best),
        candidates=candidates,
        ratios=_ratios(evidence, recipe),
        samples=_samples(evidence, recipe),
        bars=tuple(Bar(bar.name, bar.paper, bar.bar, bar.here, bar.met) for bar in evidence.bars),
        sites=tuple(SiteBits(**site) for site in result.get("sites", ())),
        loads=tuple(sorted(evidence.load_runs, key=lambda one: (one.rate, one.by))),
        share=result.get("share") if "met" in result else None,
        quality=dict(evidence.quality),
        workload=dict(result.get("workload", {})),
        target={**_facts(target), "name": evidence.target.get("name", "")} if target else dict(evidence.target),
        versions=dict(evidence.versions),
        seed=evidence.seed,
        threads=evidence.threads,
        notes=tuple(dict.fromkeys([*evidence.notes, *(winner.notes if winner else ())])),
    )


def site_bits(model: Any) -> list[dict[str, Any]]:
    """How every site of a `Model` is stored, for `evidence.result["sites"]`."""
    rows = []
    for site in model.sites():
        weight = model.weight(site.name)
        rows.append(
            {
                "site": site.name,
                "kind": site.kind,
                "form": weight.form,
                "bits": float(weight.bits_per_weight),
                "nbytes": int(weight.nbytes),
                "parameters": site.parameters,
            }
        )
    return rows


def short(recipe: Recipe) -> str:
    """The one-line form with long lists cut: `lut-gemm(bits=3, only=["layers.0.*", "layers.1.*", … +9])`."""
    steps = []
    for step in recipe.steps:
        inside = ", ".join(f"{name}={_short_value(value)}" for name, value in step.settings.items())
        steps.append(f"{step.system}({inside})" if inside else step.system)
    return " + ".join(steps) or "(unmodified)"


def _short_value(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        shown = [_short_value(item) for item in value[:LONG]]
        return f"[{', '.join([*shown, f'… +{len(value) - LONG}'] if len(value) > LONG else shown)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _candidate(document: Any, identifier: str = "", role: str = "measured") -> Shown | None:
    if not isinstance(document, Mapping):
        return None
    return Shown(
        id=identifier,
        recipe=short(Recipe.from_json(list(document.get("recipe", [])))),
        role=role,
        measured=_numbers(document.get("measured", {})),
        predicted=_numbers(document.get("predicted", {})),
        notes=tuple(document.get("notes", ())),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Only what is a number; the ends of intervals (`quality_low` ...) stand elsewhere."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith(("_low", "_high"))
    }


def _medians(evidence: core.Evidence) -> dict[str, float]:
    """Metric -> the baseline's median in the run that proved the winner; with the rates that follow from them."""
    baselines = {(ratio.measurement, ratio.baseline) for ratio in evidence.ratios}
    found = {
        series.measurement: median(series.values)
        for series in evidence.series
        if (series.measurement, series.arm) in baselines and series.values
    }
    for rate, seconds in (("throughput_tok_s", "tpot_s"), ("throughput_per_s", "latency_s")):
        if found.get(seconds):
            found[rate] = 1 / found[seconds]
    return found


def _candidates(result: Mapping[str, Any], proven: Mapping[str, float]) -> tuple[Shown, ...]:
    """Baseline and winner, then the front, then the rest; each recipe once.

    The winner was measured once more, beside the baseline; the baseline's values are those of that run.
    """
    groups: list[tuple[str, Sequence[Any]]] = [
        ("baseline", [result.get("baseline")]),
        ("winner", [result.get("winner")]),
        ("front", result.get("front", ())),
        ("measured", result.get("candidates", ())),
    ]
    seen: dict[str, Shown] = {}
    for role, documents in groups:
        for document in documents:
            if not isinstance(document, Mapping):
                continue
            key = f"{document.get('recipe', [])!r}"
            if key in seen and not (role == "winner" and seen[key].role == "baseline"):
                continue
            candidate = _candidate(document, f"c{len(seen)}", role)
            assert candidate is not None
            if role == "measured" and not candidate.measured:
                continue
            if role == "baseline":
                again = {key: value for key, value in proven.items() if key in candidate.measured}
                candidate = replace(candidate, measured={**candidate.measured, **again})
            seen[key if key not in seen else f"winner {key}"] = candidate
    return tuple(seen.values())


def _engines(rows: Sequence[Mapping[str, Any]]) -> tuple[Shown, ...]:
    """The engines of a bench, alone with the machine (the smallest batch); on the front where none beats them."""
    least = min((row["batch"] for row in rows), default=1)
    found = []
    for row in rows:
        if row["batch"] == least:
            others = [other for other in rows if other["engine"] == row["engine"] and other["batch"] > least]
            if "latency_s" in row:  # a module's
                times = {"latency_s": row["latency_s"]}
                batched = {f"batch_{other['batch']}_latency_s": other["latency_s"] for other in others}
            else:
                times = {"tpot_s": 1 / row["decode_tok_s"], "prefill_tok_s": row["prefill_tok_s"]}
                batched = {f"batch_{other['batch']}_tok_s": other["decode_tok_s"] for other in others}
            kept = {
                key: row[key] for key in ("quality", "size_bytes", "kl", "top1_agreement", "perplexity") if key in row
            }
            found.append(Candidate(Recipe(), measured={**times, **batched, **kept}))
    front = {id(candidate) for candidate in pareto(found)}
    names = [row["engine"] for row in rows if row["batch"] == least]
    return tuple(
        Shown(f"c{number}", name, "front" if id(one) in front else "measured", _numbers(one.measured), {})
        for number, (name, one) in enumerate(zip(names, found, strict=True))
    )


def _limits(budget: Any, best: Mapping[str, float]) -> tuple[Limit, ...]:
    """From the budget's text, or from its JSON form (a list whose items have their `text`)."""
    if isinstance(budget, list):
        budget = ", ".join(str(item.get("text", "")) for item in budget if isinstance(item, Mapping))
    try:
        limits = Budget.parse(budget, own_quality=True).limits if isinstance(budget, str) else ()
    except BadInput:  # evidence of another version: the rest of the page still stands
        return ()
    keys = [limit.measured_key(best) for limit in limits]
    return tuple(
        Limit(key, limit.op, limit.value, best.get(key), limit.text) for key, limit in zip(keys, limits, strict=True)
    )


def _objective(name: Any, best: Mapping[str, float]) -> str:
    return Objective.parse(name).key(best) if name in OBJECTIVES else ""


def _arm(name: str, evidence: core.Evidence, recipe: Recipe) -> str:
    """How an arm is called on the page; the main path names its arms `baseline` and by the recipe's text."""
    if evidence.experiment not in ("optimize", "apply"):
        return name
    if name == "baseline":
        return "original"
    if recipe.steps and name == str(recipe):
        return "nearest" if evidence.result.get("met") is False else "winner" if evidence.result else "recipe"
    try:
        return short(Recipe.parse(name))
    except BadInput:
        return name


def _ratios(evidence: core.Evidence, recipe: Recipe) -> tuple[Ratio, ...]:
    measured = [ratio.measurement for ratio in evidence.ratios]
    made = []
    for ratio in evidence.ratios:
        candidate, baseline = (_arm(name, evidence, recipe) for name in (ratio.candidate, ratio.baseline))
        label = metric(ratio.measurement).label
        made.append(
            Ratio(
                metric=ratio.measurement,
                baseline=baseline,
                candidate=candidate,
                value=ratio.value,
                low=_end(ratio.low, 0.0),
                high=_end(ratio.high, math.inf),
                n=ratio.pairs,
                floor=_floor(ratio, evidence),
                verdict=ratio.verdict,
                label=f"{label}: {candidate}" if measured.count(ratio.measurement) > 1 else label,
            )
        )
    return tuple(made)


def _end(value: float, unbounded: float) -> float:
    """An end of an interval; infinite ones come back from a file as NaN."""
    return unbounded if math.isnan(value) else value


def _floor(ratio: core.Ratio, evidence: core.Evidence) -> float | None:
    """The noise floor; infinite (unknown) where the baseline ran twice and a file has no number for it."""
    if ratio.noise_floor is not None:
        return _end(ratio.noise_floor, math.inf)
    twice = any(series.arm == AGAIN and series.measurement == ratio.measurement for series in evidence.series)
    return math.inf if twice else None


def _samples(evidence: core.Evidence, recipe: Recipe) -> tuple[Samples, ...]:
    baselines = {ratio.measurement: ratio.baseline for ratio in evidence.ratios}
    made = []
    for series in evidence.series:
        baseline = baselines.get(series.measurement, "baseline")
        role = "again" if series.arm == AGAIN else "baseline" if series.arm == baseline else "candidate"
        arm = f"{_arm(baseline, evidence, recipe)} again" if role == "again" else _arm(series.arm, evidence, recipe)
        made.append(Samples(arm, series.measurement, series.values, role, series.unit))
    return tuple(made)


def _apply_command(evidence: core.Evidence, recipe: Recipe) -> str:
    model = evidence.model.get("given") or evidence.model.get("name", "")
    if evidence.experiment not in ("optimize", "apply") or not recipe.steps or not model:
        return ""
    artifact = evidence.result.get("artifact")
    source = f"{artifact}/recipe.toml" if artifact else str(recipe)
    return f"headway apply {shlex.quote(source)} {shlex.quote(model)} -o again"


def _facts(target: Target) -> dict[str, str]:
    rates = {f"{level.level} read": f"{level.read_bytes_per_s / 1e9:.1f} GB/s" for level in target.memory}
    best: dict[str, float] = {}
    for rate in target.compute:
        best[rate.dtype] = max(rate.ops_per_s, best.get(rate.dtype, 0.0))
    return {
        "fingerprint": target.fingerprint[:16],
        "cores": str(target.cores),
        "memory": f"{target.ram_bytes / 1e9:.1f} GB",
        "instruction sets": ", ".join(target.isa),
        **rates,
        **{f"{dtype} rate": f"{value / 1e9:.0f} G/s" for dtype, value in best.items()},
        "GPU": ", ".join(gpu.name for gpu in target.gpu),
        "probed": target.measured_at,
    }
