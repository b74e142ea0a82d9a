"""The real part of `hexgen-text2sql`'s proof: text-to-SQL over sqlite3 on two unequal engines of this machine.

Both engines hold the same bfloat16 weights, one plain and one coded without loss: each token is the same on either, so
that a query is the same work wherever its calls run, and one engine is several times slower.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.core.registry import system
from headway.core.system import Context
from headway.hardware.iteration_time import IterationTime
from headway.llm.language_model import LanguageModel
from headway.llm.native import PAGE_TOKENS, NativeRuntime
from headway.llm.weights.dense import DenseWeight
from headway.serving import text2sql
from headway.serving.alpha_tuning import WorkflowFleet
from headway.serving.dispatch.base import Dispatcher, RoundRobin
from headway.serving.dispatch.deadlines import StageDeadlines
from headway.serving.dispatch.hexgen_text2sql import SYSTEM, Hexgen, Urgency
from headway.serving.dispatch.stage_times import StageTimes, shapes
from headway.serving.engine import Engine
from headway.serving.fleet import Machine
from headway.serving.live_fleet import LiveInstance, run_fleet
from headway.serving.measuring import measure
from headway.serving.schedulers.base import Limits
from headway.serving.schedulers.vllm_like import PrefillFirst, VllmLikeSettings
from headway.serving.simulator import OneLane, Setting
from headway.serving.workflow import Query, Running, Workflows, latencies, lengths, quantile

MODEL = "smollm2-135m"
CODED = "dfloat11"
ALPHA = 0.2
SCALE = 3.0
QUESTIONS = 20
SEQS = 6
PAGES = 200
CONTEXT = 640
"""Tokens of the longest calls."""
LOAD = 0.85
"""Of the rate at which round-robin ends everything that arrives at once."""


@dataclass
class Bench:
    """Two engines' models, what is believed of their batches, and what was measured again for the simulator."""

    models: dict[str, LanguageModel]
    believed: dict[str, IterationTime]
    measured: dict[str, IterationTime]
    workflow: text2sql.Text2SQL

    def limits(self) -> Limits:
        return Limits(max_seqs=SEQS)

    def deadlines(self, times: StageTimes) -> StageDeadlines:
        return StageDeadlines(times, text2sql.TEMPLATE, slo_scale=SCALE)

    def run(
        self, questions: list[tuple[str, float, str]], dispatcher: Dispatcher, times: StageTimes | None
    ) -> list[Running]:
        """(id, arrival, text) of each question on the real engines; times: order queues by urgency."""
        instances = [
            LiveInstance(
                kind,
                Engine(
                    model, PrefillFirst(VllmLikeSettings()), pages=PAGES, cost=self.believed[kind],
                    limits=self.limits(), prefix=False, order=None if times is None else Urgency(times, kind),
                ),
            )
            for kind, model in self.models.items()
        ]  # fmt: skip
        flows = [(id, at, lambda text=text: self.workflow.flow(text)) for id, at, text in questions]  # type: ignore[misc]
        work = Workflows(flows, None if times is None else self.deadlines(times), PAGE_TOKENS)
        run_fleet(instances, work, dispatcher)
        return work.runs

    def fleet(self, times: StageTimes) -> WorkflowFleet:
        """The same in the simulator, over the second measurement."""
        setting = Setting(PAGES, PAGE_TOKENS, self.limits())
        machines = tuple(
            Machine(kind, lambda: PrefillFirst(VllmLikeSettings()), OneLane(cost), setting)
            for kind, cost in self.measured.items()
        )
        return WorkflowFleet(machines, times, self.deadlines(times))


def bench(context: ProofContext, folder: Path) -> Bench:
    """Raises `BadInput` for a model that is no language model."""
    model = context.load(context.model or MODEL)
    if not isinstance(model, LanguageModel):
        raise BadInput(f"{model.name} is no language model", f"prove {SYSTEM.slug} on {MODEL} or an LLM of your own")
    plain = model.with_weights({s.name: DenseWeight(model.weight(s.name).dequantize(), "bf16") for s in model.sites()})
    coder: Any = system(CODED)
    coded = coder.apply(plain, coder.settings(), Context(context.target, threads=context.threads))
    models = {"plain": plain.with_runtime("native", 1), "coded": coded.with_runtime("native", 1)}

    def fitted(item: tuple[int, str]) -> IterationTime:
        runtime = models[item[1]].runtime
        assert isinstance(runtime, NativeRuntime)
        count = 48 if context.quick else 72
        return measure(runtime, count=count, seed=item[0], context=CONTEXT, most_decodes=SEQS).fit()

    tables = []
    with context.progress.task("measuring batches of both engines", 2), ThreadPoolExecutor(2) as both:
        for again in range(2):  # side by side: that is how they will run
            tables.append(
                dict(zip(models, both.map(fitted, [(context.seed + again, kind) for kind in models]), strict=True))
            )
    text2sql.make_database(folder / "questions.db", context.seed)
    database = text2sql.Database(folder / "questions.db")
    return Bench(models, tables[0], tables[1], text2sql.Text2SQL(models["plain"], database))


def real(evidence: Evidence, context: ProofContext) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = bench(context, Path(folder))
        try:
            compared(evidence, context, made)
        finally:
            made.workflow.database.close()


def compared(evidence: Evidence, context: ProofContext, made: Bench) -> None:
    evidence.about(made.models["plain"])
    count = 10 if context.quick else QUESTIONS
    # What stages take is learnt from other questions than those that are judged.
    before = text2sql.make_questions(count, context.seed + 1)
    with context.progress.task("questions to learn from"):
        learnt = made.run([(f"b{at}", 0.0, text) for at, text in enumerate(before)], RoundRobin(), None)
    window = [run.record() for run in learnt]
    known = shapes(lengths(window))
    if "evaluate" not in known or "revise" not in known:  # no draft failed, or all agreed
        known |= {name: known["candidate"] for name in ("evaluate", "revise") if name not in known}
    times = StageTimes(tuple(made.models), shapes=known, costs=made.believed)
    fleet = made.fleet(times)
    at_once, _ = fleet.run([Query(q.id, 0.0, q.stages) for q in window], RoundRobin(), by_urgency=False)
    rate = LOAD * len(window) / max(run.finished or 0.0 for run in at_once)

    asked = text2sql.make_questions(count, context.seed)
    arrivals = np.cumsum(np.random.default_rng(context.seed).exponential(1.0 / rate, count)).tolist()
    questions = [(f"q{at}", when, text) for at, (when, text) in enumerate(zip(arrivals, asked, strict=True))]
    runs: dict[str, list[list[Running]]] = {"base": [], "ours": []}
    for _ in context.progress.track(range(1 if context.quick else 3), "questions on two engines"):
        runs["base"].append(made.run(questions, RoundRobin(), None))
        runs["ours"].append(made.run(questions, Hexgen(times, ALPHA), times))
    p95 = {arm: [quantile(each) for each in rounds] for arm, rounds in runs.items()}
    ratio = float(np.median(np.array(p95["base"]) / np.array(p95["ours"])))
    speeds = [times.of(kind, "candidate") for kind in made.models]
    evidence.bar(
        f"here: {count} questions, engines {speeds[1] / speeds[0]:.1f}x apart: P95 of round-robin and FCFS over ours",
        "1.41x mean", ">= 1.2",
        f"{ratio:.2f} ({np.median(p95['base']):.1f} -> {np.median(p95['ours']):.1f} s)", ratio >= 1.2,
    )  # fmt: skip
    answers = [{run.id: run.value for run in each} for rounds in runs.values() for each in rounds]
    differ = [id for id, *_ in questions if len({answer[id].sql for answer in answers if answer[id]}) != 1]
    failed = sum(bool(run.failed) for rounds in runs.values() for each in rounds for run in each)
    values = [answer for answer in answers[0].values() if answer is not None]  # none: it failed
    evidence.bar(
        "here: final SQL of every question in all runs", "unchanged", "identical (greedy)",
        f"{', '.join(differ[:3]) or 'identical'}; {sum(v.result.rows is not None for v in values)} of {count} run, "
        f"{sum(v.revisions for v in values)} revisions, {failed} failed", not differ and not failed,
    )  # fmt: skip
    errors = {}
    for arm, by_urgency in (("base", False), ("ours", True)):
        dispatcher = Hexgen(times, ALPHA) if by_urgency else RoundRobin()
        guessed, _ = fleet.run([run.record() for run in runs[arm][0]], dispatcher, by_urgency)
        seen = float(np.mean([latencies(each).mean() for each in runs[arm]]))
        errors[arm] = float(latencies(guessed).mean()), seen
    worst = max(abs(guess / seen - 1) for guess, seen in errors.values())
    shown = ", ".join(f"{arm} {guess:.1f} against {seen:.1f} s" for arm, (guess, seen) in errors.items())
    evidence.bar(
        "here: mean latency in the simulator against the real runs", "-", "within 15 %", f"{worst:.1%} ({shown})",
        worst <= 0.15,
    )  # fmt: skip
