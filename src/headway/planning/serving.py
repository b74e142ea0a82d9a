"""`serving`: how one server on this machine should run for a load: scheduler, token budget, form of keys and values.

Every choice is simulated with the scheduler object that the engine would run, over batches that were measured here. The
choice that sustains the highest rate within the limits wins; a later one of the list must be better by a margin, so
that noise changes nothing and keys and values stay exact unless giving that up pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.recipe import Recipe, Step
from headway.core.system import PlanContext, Planner, Problem, Settings
from headway.llm.native import PAGE_TOKENS
from headway.planning.here import Here
from headway.planning.workload import Part, SLOTable, mixed
from headway.serving.capacity import capacity, holds
from headway.serving.outcome import Outcome
from headway.serving.schedulers.base import SLO, Scheduler, of_one_lane, scheduler_system
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import Trace

SYSTEM = Card(
    slug="serving",
    title="Serving plan",
    paper="plain planner; exhaustive simulation of the choices a server has",
    kind="planner",
    slot="placement",
    summary="scheduler, token budget and form of keys and values of a server, by simulation over measured batches",
    claim="the server that sustains the highest rate within its limits, of those that can be had",
    reference=True,
)

KV_STEPS: dict[str, tuple[Step, ...]] = {
    "f16": (),
    "int8": (Step("kv-int8"),),
    "k8v4": (Step("kv-int4"),),
    "int4": (Step("kv-int4", {"keys": 4}),),
}
"""What a recipe says for each form of keys and values."""
BUDGET = "token_budget"
"""What schedulers call the tokens of an iteration that they can be told."""
SURE = 1.1
"""A plan is met when the sustained rate exceeds the asked one by this factor."""


class ServingSettings(Settings):
    """What is tried."""

    schedulers: tuple[str, ...] = Field(
        ("sarathi-serve", "vllm-like", "orca-like"),
        min_length=1,
        description="systems of the slot scheduler, one lane each",
    )
    budgets: tuple[int | Literal["auto"], ...] = Field(
        ("auto", 32, 64, 128, 256, 512),
        min_length=1,
        description="tokens of an iteration, where a scheduler takes that",
    )
    kv: tuple[Literal["f16", "int8", "k8v4", "int4"], ...] = Field(
        ("f16", "int8"),
        min_length=1,
        description="forms of keys and values (k8v4 and int4 only where asked for)",
    )
    margin: float = Field(0.05, ge=0, lt=1, description="by how much a later choice must be better than an earlier one")
    requests: int = Field(300, ge=20, description="of a simulated run")
    tolerance: float = Field(0.05, gt=0, lt=1, description="sustained rates are bracketed within this share")


class ServingProblem(Problem):
    """A whole problem file."""

    model: str = Field(min_length=1, description="a MODEL")
    recipe: str = Field("", description="systems to apply first, e.g. int8")
    rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="requests per second; none: the most there is"
    )
    threads: int = Field(0, ge=0, description="0: as the command says")
    kv_gb: float = Field(0.25, gt=0, description="memory for keys and values, 1e9 bytes")
    max_seqs: int = Field(32, ge=1, le=1024, description="requests that run at once")
    slo: SLOTable = Field(description="[slo]: limits")
    workload: tuple[Part, ...] = Field(min_length=1, description="[[workload]] tables")

    @model_validator(mode="after")
    def _check(self) -> ServingProblem:
        Recipe.read(self.recipe) if self.recipe else None
        return self


@dataclass(frozen=True)
class Choice:
    """One way to serve."""

    kv: str
    scheduler: Step

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*KV_STEPS[self.kv], self.scheduler)

    def make(self) -> Scheduler:
        system = scheduler_system(self.scheduler.system)
        made: Scheduler = system.make(system.settings.parse(self.scheduler.settings, self.scheduler.system))
        return made

    def __str__(self) -> str:
        return str(Recipe(self.steps))


@dataclass(frozen=True)
class Tried:
    """A choice with what it does in the simulator: the highest rate that holds the limits, and the asked rate."""

    choice: Choice
    rate: float
    at: Outcome | None
    """The run at the asked rate; without one: at the sustained rate."""


DEFAULT = Choice("f16", Step("sarathi-serve"))
"""What `headway serve` does unless it is told otherwise; without limits, so that its budget is the fallback's."""


def choices(settings: ServingSettings) -> list[Choice]:
    """All that is tried. Raises `BadInput` for a system that is no scheduler or needs more than one lane."""
    found = []
    for kv in settings.kv:
        for slug in settings.schedulers:
            system = scheduler_system(slug)
            steps = [Step(slug)]
            if BUDGET in system.settings.model_fields:
                steps = [Step(slug, {} if budget == "auto" else {BUDGET: budget}) for budget in settings.budgets]
            for step in steps:
                choice = Choice(kv, step)
                of_one_lane(choice.make(), slug)
                found.append(choice)
    return found


def run(here: Here, scheduler: Scheduler, trace: Trace, slo: SLO) -> Outcome:
    """A trace in the simulator, over batches measured here."""
    setting = Setting(here.pages, PAGE_TOKENS, here.limits, slo)
    return simulate(trace, scheduler, OneLane(here.cost), setting)


def attempt(here: Here, choice: Choice, trace: Trace, slo: SLO, rate: float | None, tolerance: float) -> Tried:
    """The highest rate at which the choice holds its limits, from bisection."""
    at_once = Trace(trace.arrival * 0.0, trace.prompt, trace.output)
    guess = 0.5 * len(trace) / run(here, choice.make(), at_once, slo).end_s
    found = capacity(lambda r: run(here, choice.make(), trace.at_rate(r), slo), slo, guess, tolerance=tolerance)
    outcome = found.outcome if rate is None else run(here, choice.make(), trace.at_rate(rate), slo)
    return Tried(choice, found.rate if found.outcome is not None else 0.0, outcome)


def best_of(tried: Sequence[Tried], margin: float) -> Tried:
    """The highest rate; of those within the margin of it, the first."""
    top = max(each.rate for each in tried)
    return next(each for each in tried if each.rate >= top / (1 + margin))


class ServingPlanner(Planner[ServingSettings]):
    """A server's settings for a load."""

    card = SYSTEM
    settings = ServingSettings

    def plan(self, problem: Mapping[str, Any], settings: ServingSettings, context: PlanContext) -> dict[str, Any]:
        asked: ServingProblem = ServingProblem.parse(problem, context.source)
        options = choices(settings)
        trace = load(asked, settings.requests, context)
        threads, slo = asked.threads or context.threads, asked.slo.slo()
        models: dict[str, Here] = {}
        for kv in settings.kv:
            recipe = Recipe.read(asked.recipe) if asked.recipe else Recipe()
            model = context.load(asked.model, _text(recipe + Recipe(KV_STEPS[kv])))
            models[kv] = measured(model, threads, asked, context)
        refuse_longer(trace, models)
        tried = []
        for choice in context.progress.track(options, "simulating choices"):
            tried.append(attempt(models[choice.kv], choice, trace, slo, asked.rate, settings.tolerance))
        best = best_of(tried, settings.margin)
        return document(asked, threads, slo, best, tried)

    def table(self, plan: Mapping[str, Any]) -> str:
        lines = [f"{plan['recipe']}: sustains {plan['predicted']['rate']:.2f} requests/s within the limits"]
        if plan["rate"] is not None:
            lines[0] += f" ({plan['rate']:g} asked)"
        lines += [f"  {each['rate']:8.2f}/s  {each['choice']}" for each in plan["tried"]]
        if not plan["met"]:
            lines.append("  no choice holds the limits at the asked rate with a tenth to spare")
        lines.append("  run it with: headway serve --plan FILE")
        return "\n".join(lines)


def _text(recipe: Recipe) -> str:
    return str(recipe) if recipe.steps else ""


def load(asked: ServingProblem, count: int, context: PlanContext) -> Trace:
    """What arrives, at the asked rate or in its own."""
    parts = list(asked.workload)
    if len(parts) == 1:
        return parts[0].as_it_came(count, context.folder, context.seed)
    return mixed(parts, count, context.folder, context.seed)


def measured(model: Model, threads: int, asked: ServingProblem, context: PlanContext) -> Here:
    return Here.measured(
        model,
        threads,
        kv_bytes=asked.kv_gb * 1e9,
        max_seqs=asked.max_seqs,
        progress=context.progress,
        use="a serving plan",
    )


def refuse_longer(trace: Trace, models: Mapping[str, Here]) -> None:
    """Raise `BadInput` for requests that the model cannot take."""
    longest = int((trace.prompt + trace.output).max())
    most = min(here.limits.max_len for here in models.values())
    if longest > most:
        raise BadInput(
            f"a request of {longest} tokens exceeds the {most} that fit",
            "cut the workload with most_prompt and most_output, or give more kv_gb",
        )


def document(asked: ServingProblem, threads: int, slo: SLO, best: Tried, tried: Sequence[Tried]) -> dict[str, Any]:
    """The plan, as `headway serve --plan` reads it."""
    fixed = Recipe.read(asked.recipe) if asked.recipe else Recipe()
    at = best.at
    held = at is not None and holds(at, slo)
    predicted: dict[str, Any] = {"rate": best.rate, "holds": held}
    if at is not None:
        predicted |= {k: v for k, v in at.summary().items() if k.endswith(("_s", "tok_s"))}
    return {
        "met": best.rate > 0 if asked.rate is None else held and best.rate >= SURE * asked.rate,
        "model": asked.model,
        "recipe": str(fixed + Recipe(best.choice.steps)),
        "limits": {"threads": threads, "max_seqs": asked.max_seqs, "kv_bytes": int(asked.kv_gb * 1e9)},
        "slo": {"ttft_s": slo.ttft_s, "tbt_s": slo.tbt_s, "tpot_s": slo.tpot_s, "quantile": slo.quantile},
        "rate": asked.rate,
        "predicted": predicted,
        "tried": [{"choice": str(each.choice), "rate": each.rate} for each in tried],
    }
