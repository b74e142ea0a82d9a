"""`bench --trace`: what a load run gave, as a verb's answer: evidence, a JSON document, a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headway.core.evidence import Evidence, LoadRun
from headway.core.target import Target
from headway.core.units import show
from headway.serving.load_run import LoadBench

NOISY = 0.15
"""Difference of two measurements of the same batches from which it is said."""
MEDIAN, TAIL = 50, 99
"""Places in the quantiles of a `LoadRun`."""


@dataclass(frozen=True)
class LoadResult:
    """`met`: the SLO's share of the requests was within it in every run of the engine; None: no SLO was given."""

    runs: list[LoadRun]
    met: bool | None
    evidence: Evidence
    target: Target

    def as_json(self) -> dict[str, Any]:
        told = [figures(run) for run in self.runs]
        return {"runs": told, "met": self.met, "notes": self.evidence.notes, "evidence": self.evidence.to_json()}

    def table(self) -> str:
        head = f"{'rate':>8}  {'by':<9}  {'TTFT 50%':>9} {'99%':>9}  {'between 50%':>11} {'99%':>9}  {'tok/s':>7}  done"
        lines = [head + ("" if self.met is None else "   in SLO")]
        for run in self.runs:
            t = [_said(run.ttft_s, MEDIAN), _said(run.ttft_s, TAIL), _said(run.tbt_s, MEDIAN), _said(run.tbt_s, TAIL)]
            within = "" if run.attainment is None else f"  {100 * run.attainment:6.1f}%"
            lines.append(
                f"{run.rate:>6g}/s  {run.by:<9}  {t[0]:>9} {t[1]:>9}  {t[2]:>11} {t[3]:>9}  {run.output_tok_s:>7.1f}  "
                f"{run.finished}/{run.requests}{within}"
            )
        return "\n".join(lines) + f"\n\n{self.evidence.table()}"


def figures(run: LoadRun) -> dict[str, Any]:
    """What of a run fits in one row."""
    return {
        "by": run.by,
        "rate": run.rate,
        "requests": run.requests,
        "finished": run.finished,
        "rejected": run.rejected,
        "preemptions": run.preemptions,
        "seconds": run.seconds,
        "output_tok_s": run.output_tok_s,
        "total_tok_s": run.total_tok_s,
        "ttft_p50_s": at(run.ttft_s, MEDIAN),
        "ttft_p99_s": at(run.ttft_s, TAIL),
        "tbt_p50_s": at(run.tbt_s, MEDIAN),
        "tbt_p99_s": at(run.tbt_s, TAIL),
        "attainment": run.attainment,
    }


def at(quantiles: Sequence[float], percent: int) -> float | None:
    return quantiles[percent] if quantiles else None


def _said(quantiles: Sequence[float], percent: int) -> str:
    value = at(quantiles, percent)
    return "–" if value is None else show(value, "s")


def load_bench(
    bench: LoadBench, target: Target, rates: Sequence[float] | None, budget: str, source: str, factor: float
) -> LoadResult:
    """Run it. rates: requests per second, None: chosen (see `LoadBench.rates`). budget: of the SLO, as text.

    source, factor: what the trace is called, and what its lengths were scaled by (see `Trace.fitted`).
    """
    model, wanted, trace = bench.model, bench.wanted, bench.trace
    evidence = Evidence.begin("bench", model.name, target, wanted.seed, wanted.threads).about(model)
    chosen = list(rates) if rates is not None else bench.rates()
    if rates is None:
        evidence.notes.append("rates are 30, 60 and 90 % of the one at which the simulator works off a full queue")
    if factor < 1:
        evidence.notes.append(
            f"lengths of {source} are scaled by {factor:.3g}: its longest request fits the context of "
            f"{model.architecture.context} tokens"
        )
    if (apart := bench.disagreement()) > NOISY:
        evidence.notes.append(
            f"two measurements of how long batches take differ by {100 * apart:.0f} % in the median (was the machine "
            "busy during one?): the simulator is no surer than that"
        )
    runs = bench.run(chosen)
    quantile = bench.slo.quantile
    met = None
    if bench.slo.limited:
        met = all(run.attainment is not None and run.attainment >= quantile for run in runs if run.by == "engine")
    evidence.load_runs = runs
    slug, settings = bench.scheduler
    evidence.result = {
        "workload": {
            "trace": source,
            "requests": len(trace),
            "prompt tokens, mean": round(float(trace.prompt.mean())),
            "answer tokens, mean": round(float(trace.output.mean())),
            "lengths scaled by": factor,
            "scheduler": slug,
            "limits": budget or "none",
        },
        "scheduler": {"system": slug, "settings": settings},
        **({} if met is None else {"met": met, "share": quantile}),
    }
    return LoadResult(runs, met, evidence, target)
