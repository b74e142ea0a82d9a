"""The proof of `serving` plans: the trace on the real engine, as planned and as a server runs untold, same arrivals."""

from __future__ import annotations

from typing import Any

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.core.registry import system
from headway.core.system import Context
from headway.hardware.iteration_time import Load
from headway.kernels import cpu
from headway.planning.here import Here
from headway.planning.serving import DEFAULT, SYSTEM, ServingSettings, attempt, best_of, choices, run
from headway.serving.capacity import holds
from headway.serving.outcome import Outcome
from headway.serving.schedulers.base import SLO
from headway.serving.trace import generate

BASELINE = "headway serve as it runs untold (sarathi-serve without limits, keys and values in float16), same arrivals"
MODEL = "smollm2-135m"
LOAD = 0.8
"""Of the rate that the planned server is predicted to sustain."""


def prove(context: ProofContext) -> Evidence:
    """Raises `BadInput` for a model that is no language model."""
    models = variants(context)
    plain = models[DEFAULT.kv]
    evidence = context.begin(SYSTEM.slug, context.threads or cpu.threads(), plain.model)
    slo = limits(plain)
    trace = generate("azure-conv", 30 if context.quick else 80, 1.0, seed=context.seed).scaled(0.5, 1500, 96)
    settings = ServingSettings()
    with context.progress.task("simulating choices") as task:
        tried = []
        for choice in choices(settings):
            task.say(f"simulating {choice}")
            tried.append(attempt(models[choice.kv], choice, trace, slo, None, 0.08))
    best = best_of(tried, settings.margin)
    if not best.rate:
        raise BadInput(
            "no choice holds the proof's limits on this machine", "prove it with fewer other programs running"
        )
    trace = trace.at_rate(LOAD * best.rate)
    here = models[best.choice.kv]
    real = {
        "plan": here.run(best.choice.make(), trace, slo, seed=context.seed, progress=context.progress).outcome,
        "default": plain.run(DEFAULT.make(), trace, SLO(), seed=context.seed, progress=context.progress).outcome,
    }
    simulated = {"plan": run(here, best.choice.make(), trace, slo), "default": run(plain, DEFAULT.make(), trace, SLO())}
    evidence.notes.append(f"planned: {best.choice}, {best.rate:.2f} requests/s predicted; limits {_limits(slo)}")
    judge(evidence, slo, real, simulated)
    return evidence


def variants(context: ProofContext) -> dict[str, Here]:
    """The model with int8 weights and each form of keys and values, measured here."""
    from headway.llm.language_model import LanguageModel

    model = context.load(context.model or MODEL)
    if not isinstance(model, LanguageModel):
        raise BadInput(f"{model.name} is no language model", f"prove {SYSTEM.slug} on {MODEL} or an LLM of your own")
    weights: Any = system("int8")
    int8 = weights.apply(model, weights.settings(), Context(context.target, threads=context.threads))
    threads = context.threads or cpu.threads()

    def here(made: LanguageModel) -> Here:
        return Here.measured(made, threads, kv_bytes=400e6, max_seqs=32, progress=context.progress, use=SYSTEM.slug)

    return {"f16": here(int8), "int8": here(int8.with_kv("int8"))}


def limits(here: Here) -> SLO:
    """Five steps of eight answers between tokens; a first token within the time of four of the longest prompts."""
    step = here.cost(Load(8, 0.0, 8, 8 * 1024, 8, 8))
    longest = here.cost(Load(1500, 1500 * 750.0, 0, 0, 1, 1))
    return SLO(ttft_s=4 * longest, tbt_s=5 * step)


def judge(evidence: Evidence, slo: SLO, real: dict[str, Outcome], simulated: dict[str, Outcome]) -> None:
    plan, default = real["plan"], real["default"]
    kept = holds(plan, slo)
    evidence.bar(
        f"the planned server on the real engine at {LOAD:.0%} of the rate it should sustain", "(none)",
        "holds its limits", f"{'held' if kept else 'missed'}: {_figures(plan)}", kept,
    )  # fmt: skip
    ratio = plan.gap_quantile(0.99) / default.gap_quantile(0.99)
    evidence.bar(
        "P99 time between tokens over the untold server's", "(none)", "<= 0.8, or both hold the limits",
        f"{ratio:.2f} (untold: {_figures(default)})", ratio <= 0.8 or (kept and holds(default, slo)),
    )  # fmt: skip
    verdicts = {name: (holds(simulated[name], slo), holds(real[name], slo)) for name in real}
    evidence.bar(
        "whether each holds the limits: simulator and engine", "(none)", "the same for both servers",
        ", ".join(f"{name}: {_yes(said)} / {_yes(is_so)}" for name, (said, is_so) in verdicts.items()),
        all(said == is_so for said, is_so in verdicts.values()),
    )  # fmt: skip
    pairs = {
        "median TTFT": (simulated["plan"].ttft_quantile(0.5), plan.ttft_quantile(0.5), 0.15),
        "mean time between tokens": (simulated["plan"].gap_mean, plan.gap_mean, 0.15),
        "P99 time between tokens": (simulated["plan"].gap_quantile(0.99), plan.gap_quantile(0.99), 0.25),
    }
    for name, (said, is_so, bar) in pairs.items():
        error = abs(said / is_so - 1)
        evidence.bar(
            f"predicted {name} of the planned server", "(none)", f"within {bar:.0%}",
            f"{error:.1%} ({said * 1e3:.1f} against {is_so * 1e3:.1f} ms)", error <= bar,
        )  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _figures(outcome: Outcome) -> str:
    between, first = outcome.gap_quantile(0.99), outcome.ttft_quantile(0.99)
    return f"P99 {between * 1e3:.1f} ms between tokens, {first:.2f} s to the first"


def _limits(slo: SLO) -> str:
    assert slo.tbt_s is not None and slo.ttft_s is not None
    return f"{slo.tbt_s * 1e3:.1f} ms between tokens, {slo.ttft_s:.2f} s to the first"
