"""The main path: measure the original, propose, predict, apply, measure, keep the front, prove the winner, save.

Read `optimize` from top to bottom: it is the whole story. Every dear step goes through the step cache, so Ctrl-C
loses nothing and a second run pays only for what is new.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headway.core.budget import METRICS, Budget, Violation
from headway.core.cache import StepCache
from headway.core.evidence import Evidence
from headway.core.ledger import Ledger
from headway.core.recipe import Recipe, Step
from headway.core.registry import BrokenPlugIn, systems
from headway.core.system import Context, NetworkTransform
from headway.hardware.correct import Run as MeasuredRun
from headway.hardware.correct import learn
from headway.optimize.candidate import Candidate, choose, pareto, violations, worst_miss
from headway.optimize.losses import make_space
from headway.optimize.measuring import UNMODIFIED, Bench
from headway.optimize.request import Request
from headway.optimize.result import Result
from headway.optimize.search import Corrections, Space, propose
from headway.optimize.subject import Subject
from headway.optimize.subjects import stored_forms

EXPLORED = 5
"""Recipes of the first ladder."""
PROPOSED = 6
"""Candidates of one round that are applied and scored on little data."""
SURVIVORS = 3
"""Of those, how many are measured in full."""
WORTH = 0.01
"""A proposal is worth a round when it is predicted to better the best so far by this share."""
ROUNDS = 4
SPACE = 0.5
"""Share of the time that is left for measuring when no further options are tried."""
NETWORK = 0.5
"""Share of the time left that making a smaller network may take."""
QUALITIES = ("quality", "kl", "top1_agreement")
TIMING = 0.05
"""Share of the time that one interleaved timing may take, and half as much again for each arm."""
PATIENCE = 0.3
"""Share that it may take for its first pairs, without which a slow model's times say nothing."""
PATIENCE_ALONE = 0.6
"""The same where no search waits for it."""
PROOF_ROUNDS = 40
LEAST_LOSS = 1e-3
"""-ln quality below which a candidate says nothing of the losses predicted."""


def optimize(request: Request) -> Result:
    """Bring the model under the budget; `Result.met` says whether it could be."""
    search = Search.begin(request)
    request = search.request
    baseline = search.measure([Candidate(UNMODIFIED)])[0]
    if not search.recall():
        if search.fixed_network:
            search.stand_on(search.network)
        search.explore_and_measure()
        while smaller := search.smaller():
            search.stand_on(smaller)
            search.explore_and_measure()
        search.remember()
    proof = search.prove()
    front = pareto(search.measured)
    return search.finish(proof.result(search, baseline, front, search.measured))


def measure_recipe(request: Request) -> Result:
    """No search: the request's recipe applied, measured beside the original, proven on held-out data and saved."""
    search = Search.begin(request)
    baseline = search.measure([Candidate(UNMODIFIED)])[0]
    proof = search.prove_one(Candidate(request.recipe), "apply")
    return search.finish(proof.result(search, baseline, [proof.candidate], [proof.candidate]))


@dataclass(frozen=True)
class Proof:
    """A candidate measured on held-out data, and what the unmodified model has there."""

    candidate: Candidate
    baseline: Mapping[str, float]
    evidence: Evidence
    missed: Sequence[Violation]
    """Limits of the budget that do not hold there."""

    @property
    def missed_by(self) -> float:
        """The worst relative miss; -1: the budget holds."""
        return max((violation.missed_by for violation in self.missed), default=-1.0)

    def result(
        self, search: Search, baseline: Candidate, front: Sequence[Candidate], measured: Sequence[Candidate]
    ) -> Result:
        baseline = baseline.with_measured(**self.baseline)
        met = not self.missed
        return Result(search.request, search.bench, baseline, self.candidate, front, measured, met, self.evidence)


@dataclass
class Search:
    """The state of one optimisation: what was measured, and what that taught the predictor."""

    request: Request
    subject: Subject
    context: Context
    bench: Bench
    deadline: float
    ledger: Ledger
    measured: list[Candidate] = field(default_factory=list)
    corrections: Corrections = field(default_factory=Corrections)
    rounds: int = 0
    training: Recipe = field(default_factory=Recipe)
    """Steps of the fixed part that train what was chosen: minutes each, so that only the winner takes them."""
    network: Recipe = field(default_factory=Recipe)
    """Steps that make the network on which the search stands; none: the unmodified one."""
    fixed_network: bool = False
    """Whether the user chose it."""
    here: list[Candidate] = field(default_factory=list)
    """Of those measured, what stands on this network; the network alone first."""

    @classmethod
    def begin(cls, request: Request) -> Search:
        subject = request.subject
        context = Context(
            request.target,
            request.calibration,
            StepCache(),
            request.threads,
            request.seed,
            progress=request.progress,
        )
        deadline = request.began + request.time_s
        corrections = Corrections(power=subject.loss_power)
        patience_s = (PATIENCE if request.searches else PATIENCE_ALONE) * request.time_s
        limit_s = min(Bench.metrics_limit_s, TIMING * request.time_s)
        asked = any(limit.metric == "ttft" for limit in request.budget.limits)
        bench = Bench(subject, context, metrics_limit_s=limit_s, patience_s=patience_s, ttft_asked=asked)
        # Opened now: a home that cannot be written is found before minutes of measuring.
        search = cls(request, subject, context, bench, deadline, Ledger.open(), corrections=corrections)
        if request.searches:
            parts = {"training": list[Step](), "network": list[Step](), "": list[Step]()}
            for step in request.recipe.steps:
                parts.get(slot_of(step), parts[""]).append(step)
            search.training, search.network = (Recipe(tuple(parts[slot])) for slot in ("training", "network"))
            search.request = replace(request, recipe=Recipe(tuple(parts[""])))
            search.fixed_network = bool(search.network.steps)
        return search

    def stand_on(self, network: Recipe) -> None:
        """Search on the network that these steps make, which is the first candidate there."""
        self.network, self.here, self.rounds = network, [], 0
        self.subject = self.bench.subject.on(self.bench.model(network))
        self.corrections = Corrections(power=self.subject.loss_power)
        self.measure([Candidate(network)])

    def explore_and_measure(self) -> None:
        """The rounds of a search on one network."""
        request = replace(self.request, recipe=self.network + self.request.recipe)
        until = self.deadline - SPACE * request.time_s
        share = share_left(request.budget, self.here[0].measured)
        space = make_space(self.subject, self.context, request, until, share)
        self.learn()
        self.explore(space)
        while self.goes_on():
            proposals = self.promising(space)
            if not proposals:
                break
            self.measure(self.halve(proposals))
            self.learn()

    def smaller(self) -> Recipe | None:
        """The largest network not tried yet that is expected to bring a candidate of good quality under the budget.

        None where the budget holds without, where quality was lost by the last one already, or the time does not
        suffice.
        """
        request, left = self.request, NETWORK * (self.deadline - time.monotonic())
        if self.fixed_network or left <= 0 or choose(self.measured, request.budget, request.objective)[1]:
            return None
        if not any(_is_good(candidate, request.budget) for candidate in self.here):
            return None
        # Shares are of the unmodified network.
        base = [c for c in self.measured if not any(slot_of(step) == "network" for step in c.recipe.steps)]
        tried = [step for candidate in self.measured for step in candidate.recipe.steps]
        for slug, entry in sorted(systems().items()):
            if entry.card.slot != "network" or slug in request.without or (request.only and slug not in request.only):
                continue
            if entry.card.kind != "transform" or request.model.task == "language":
                continue
            try:
                system = entry.load()
                with entry.blamed():
                    given = request.model, self.context.target
                    if not isinstance(system, NetworkTransform) or not system.applies(*given):
                        continue
                    options = system.options(*given)
            except BrokenPlugIn as error:
                self.context.progress.note(f"left out: {error}")
                continue
            for option in options:
                settings = system.settings.parse(option, slug)
                known = any(step.system == slug and option.items() <= step.settings.items() for step in tried)
                if known or not any(self._would_hold(candidate, system.shares(settings)) for candidate in base):
                    continue
                more = system.fitted(request.model, settings, self.context, left)
                if more is None:
                    self.context.notes.append(f"{Step(slug, option)} was not tried: a longer --time suffices for it")
                    return None
                return Recipe((Step(slug, {**option, **more}),))
        return None

    def _would_hold(self, candidate: Candidate, shares: Mapping[str, float]) -> bool:
        """Whether a candidate holds the budget once its network costs so much less."""
        measured = {metric: value * shares.get(metric, 1.0) for metric, value in candidate.measured.items()}
        if "latency_s" in measured:
            measured["throughput_per_s"] = 1.0 / measured["latency_s"]
        return not self.request.budget.check(measured)

    def recall(self) -> bool:
        """Take over what the same command found when it last ran to its end; False when it never did."""
        found = self.bench.known(*self._asked())
        if found is None:
            return False
        self.measured = [Candidate.from_json(each) for each in found["measured"]]
        self.context.calibration = self.context.calibration[: found["calibration"]]
        self.context.notes += found["notes"]
        cut = ", until its time was up: a longer --time goes on" if found["late"] else ""
        self.request.progress.note(
            f"this search was made before{cut}; its candidates are taken over, the best is proven"
        )
        return True

    def remember(self) -> None:
        """Keep the candidates, so that the same command need not search again; a longer time does."""
        self.bench.keep(
            {
                "measured": [{**candidate.as_json(), "raw_loss": candidate.raw_loss} for candidate in self.measured],
                "calibration": len(self.context.calibration),
                "notes": self.context.notes,
                "late": self.late,
            },
            *self._asked(),
        )

    def _asked(self) -> tuple[Any, ...]:
        """Everything that a search depends on besides the model, its workload and the machine."""
        request = self.request
        limits = [limit.text for limit in request.budget.limits]
        fixed = [str(request.recipe), sorted(request.only), sorted(request.without), sorted(systems())]
        return "search", limits, request.objective.name, fixed, request.time_s

    @property
    def late(self) -> bool:
        """Whether the time is up: the round in progress measures one candidate, and the best of all is proven."""
        return time.monotonic() > self.deadline

    def goes_on(self) -> bool:
        """Whether there are rounds and time left; one round is always had."""
        return not self.rounds or (self.rounds < ROUNDS and not self.late)

    def explore(self, space: Space) -> None:
        """Score a ladder of recipes on little data, to learn what a predicted loss costs in quality here."""
        if self.late:
            return
        units = max(1, self.subject.units("search") // 4)
        ladder = spread(self._propose(space), EXPLORED, self.request)
        self._learn_loss(self._score(ladder, units, "exploring: "))

    def _score(self, candidates: Sequence[Candidate], units: int, why: str = "") -> list[Candidate]:
        """Each with its quality on the first pieces of the search data."""
        what = f"{why}quality of {len(candidates)} recipes, {units} pieces each"
        return [
            candidate.with_measured(**self.bench.qualities([candidate.recipe], "search", units)[0])
            for candidate in self.request.progress.track(candidates, what)
        ]

    def _propose(self, space: Space) -> list[Candidate]:
        request = self.request
        with request.progress.task("predicting recipes"):
            return propose(
                space,
                self.subject,
                self.context.target,
                request.threads,
                request.budget,
                request.objective,
                self.corrections,
                6 * PROPOSED,
                request.seed + self.rounds,
            )

    def promising(self, space: Space) -> list[Candidate]:
        """Proposals not measured yet that are predicted to better the best so far; none when nothing would."""
        request = self.request
        self.rounds += 1
        proposals = self._propose(space)
        known = {str(candidate.recipe) for candidate in self.measured}
        fresh = [candidate for candidate in proposals if str(candidate.recipe) not in known]
        if self.rounds == 1:
            return spread(fresh, PROPOSED, request)
        best, met = choose(self.measured, request.budget, request.objective)
        return [candidate for candidate in fresh if self._betters(candidate, best, met)][:PROPOSED]

    def _betters(self, candidate: Candidate, best: Candidate, met: bool) -> bool:
        """Whether the prediction beats the best measured candidate by what is worth another round."""
        objective, budget = self.request.objective, self.request.budget
        missed = worst_miss(candidate, budget)
        if met:
            return not missed and objective.value(candidate.predicted) < (1 - WORTH) * objective.value(best.measured)
        return missed < max(v.missed_by for v in violations(best, budget)) - WORTH

    def halve(self, proposals: Sequence[Candidate]) -> list[Candidate]:
        """Successive halving on quality: few windows for all, twice as many for the better half, and so on."""
        units = max(1, self.subject.units("search") // 4)
        alive = list(proposals)
        while True:
            if self.late:
                return spread(alive, 1, self.request)
            scored = self._score(alive, units)
            self._learn_loss(scored)
            keep = max(SURVIVORS, math.ceil(len(scored) / 2))
            alive = spread(scored, keep, self.request)
            if len(alive) <= SURVIVORS:
                return alive
            units = min(2 * units, self.subject.units("search"))

    def measure(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        measured = self.bench.measure(candidates, self.subject.units("search"))
        self.measured += measured
        self.here += measured
        return measured

    def learn(self) -> None:
        """Teach the predictor what the measured candidates cost and lost."""
        self._learn_loss(self.here)
        target, threads = self.context.target, self.request.threads
        runs: dict[str, list[MeasuredRun]] = {}
        for candidate in self.here:
            model = self.bench.model(candidate.recipe)
            for metric, parts in self.subject.predict(target, stored_forms(model), threads, model).items():
                if metric in candidate.measured:
                    runs.setdefault(metric, []).append(MeasuredRun(parts, candidate.measured[metric]))
        metrics = {metric: learn(found) for metric, found in runs.items()}
        self.corrections = replace(self.corrections, metrics=metrics)

    def _learn_loss(self, candidates: Sequence[Candidate]) -> None:
        """What predicted losses cost in quality, by kind of site, and how wide the quality's interval is."""
        offset = max(-math.log(max(self.here[0].measured["quality"], 1e-6)), 0.0)
        runs = [
            MeasuredRun(candidate.raw_loss, lost ** (1.0 / self.subject.loss_power))
            for candidate in candidates
            if (lost := -math.log(max(candidate.measured["quality"], 1e-6)) - offset) > LEAST_LOSS
        ]
        self.corrections = replace(self.corrections, offset=offset, loss=learn(runs) if runs else self.corrections.loss)
        margins = [
            math.log(candidate.measured["quality_low"]) / math.log(candidate.measured["quality"])
            for candidate in candidates
            if candidate.measured.get("quality_low", 0.0) > 0 and candidate.measured["quality"] < 0.999
        ]
        if margins:
            self.corrections = replace(self.corrections, margin=min(max(statistics.median(margins), 1.0), 10.0))

    def prove(self) -> Proof:
        """The best candidate, measured again on held-out data; the next one when it does not hold there.

        When none does, the proven one that misses least.
        """
        request = self.request
        left, proofs = list(self.measured), list[Proof]()
        while True:
            winner, _ = choose(left, request.budget, request.objective)
            trained = winner
            if any(slot_of(step) == "weights" for step in winner.recipe.steps):
                trained = replace(winner, recipe=winner.recipe + self.training)
            with request.progress.task("proving the winner on held-out data"):
                proofs.append(self.prove_one(trained, "optimize"))
            left.remove(winner)
            if not proofs[-1].missed or not any(not violations(candidate, request.budget) for candidate in left):
                return min(proofs, key=lambda proof: proof.missed_by)

    def prove_one(self, candidate: Candidate, verb: str) -> Proof:
        evidence = self.evidence(verb)
        proven, baseline = self.bench.prove(candidate, evidence, PROOF_ROUNDS)
        return Proof(proven, baseline, evidence, violations(proven, self.request.budget))

    def evidence(self, verb: str) -> Evidence:
        request = self.request
        return Evidence.begin(verb, request.model.name, self.context.target, request.seed, request.threads)

    def finish(self, result: Result) -> Result:
        """Save what the user asked to have, and keep the evidence."""
        result.complete()
        if self.request.output is not None:
            result.save(self.request.output)
        self.ledger.append(result.evidence)
        return result


def share_left(budget: Budget, measured: Mapping[str, float]) -> float:
    """The share of what it measures now that the tightest limit on a cost leaves; 1 at most."""
    costs = [
        limit for limit in budget.limits if METRICS[limit.metric].better == "low" and limit.metric not in QUALITIES
    ]
    values = [(limit.value, measured.get(limit.measured_key(measured), 0.0)) for limit in costs]
    return min([1.0, *(limit / now for limit, now in values if now > 0)])


def _is_good(candidate: Candidate, budget: Budget) -> bool:
    """Whether it holds what the budget asks of its answers."""
    return not any(violation.metric in QUALITIES for violation in violations(candidate, budget))


def slot_of(step: Step) -> str:
    return systems()[step.system].card.slot


def spread(candidates: Sequence[Candidate], count: int, request: Request) -> list[Candidate]:
    """At most `count`: the best by budget and objective, then a ladder over quality, so that a front appears."""

    ranked = sorted(candidates, key=lambda c: (worst_miss(c, request.budget), request.objective.value(c.best_known())))
    best, rest = ranked[: max(1, count // 2)], ranked[max(1, count // 2) :]
    rest.sort(key=lambda c: c.best_known()["quality"])
    wanted = count - len(best)
    if wanted <= 0 or not rest:
        return best[:count]
    step = max(1.0, len(rest) / wanted)
    return best + [rest[min(int(i * step), len(rest) - 1)] for i in range(min(wanted, len(rest)))]
