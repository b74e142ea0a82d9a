"""Training beside inference: it takes only what the limit leaves, yields its pages first, and changes no answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_traces import COST, SETTINGS, run, scheduler, traces
from test_engine import drain, prompts

from headway.core.errors import BadInput
from headway.hardware.iteration_time import Load
from headway.llm.language_model import LanguageModel
from headway.llm.trainable import stack_of
from headway.serving.engine import Engine
from headway.serving.request import Request
from headway.serving.schedulers.base import SLO, Limits, Plan, Scheduler, View, load_of
from headway.serving.schedulers.flexllm import CoServe
from headway.serving.simulator import Setting
from headway.serving.trace import Trace
from headway.serving.tuning import FineTune, PieceTime, Tuning, TuningTime, kv_pages, measure_pieces
from headway.training.adamw import AdamWSettings
from headway.training.examples import Example
from headway.training.lora import Adapters, LoraSettings
from headway.training.plain import relative_error
from headway.training.position import Backward, Course, Forward, Position
from headway.training.token_trainer import TokenTrainer

TIME = TuningTime(PieceTime(0.002, 1e-4, 1e-7), PieceTime(0.001, 1e-4, 1e-7), step=0.001)


def job(lengths: tuple[int, ...] = (40, 24), joined: bool = False, steps: int = 10_000, page: int = 4) -> Tuning:
    cost = TuningTime(TIME.forward, TIME.backward, TIME.step, joined)
    return Tuning(Position(Course.of(lengths, 3, accum=2, steps=steps)), cost, kv_pages(1, page))


class Watched(Scheduler):
    """Keeps the laws of co-serving at each decision."""

    tunes = True

    def __init__(self, inner: CoServe, tuning: Tuning) -> None:
        self.inner, self.tuning, self.plans = inner, tuning, 0

    def decide(self, view: View) -> Plan:
        alone = self.inner.base.decide(view) if view.waiting or view.seqs else Plan()
        plan = self.inner.decide(view)
        self.plans += 1
        if view.lent:
            assert not plan.preempt and not plan.end, "inference is preempted while training holds pages"
        else:
            assert [c.job for b in plan.lanes.values() for c in b.chunks] == [
                c.job for b in alone.lanes.values() for c in b.chunks
            ], "the base's decision is changed"
        for batch in plan.lanes.values():
            if not batch.extra:
                continue
            seconds = self.tuning.cost.seconds(view.cost, load_of(batch, view), self.tuning.position, batch.extra)
            assert seconds <= self.inner.limit(view) * (1 + 1e-9)
            held = view.lent if plan.lend is None else plan.lend
            assert held == self.tuning.wanted_pages <= 0.5 * view.total_pages
        return plan


@given(trace=traces(), setting=SETTINGS, joined=st.booleans(), limit=st.sampled_from([0.005, 0.03, 0.2, None]))
@settings(max_examples=40, deadline=None)
def test_every_request_gets_its_tokens_beside_training(
    trace: Trace, setting: Setting, joined: bool, limit: float | None
) -> None:
    tuning = job(joined=joined)
    made = scheduler("flexllm", ft_kv_fraction=0.5)
    assert isinstance(made, CoServe)
    watched = Watched(made, tuning)
    outcome = run(trace, watched, replace(setting, slo=SLO(tbt_s=limit)), tuning=tuning)
    assert outcome.unfinished == 0 and outcome.rejected == 0
    assert (outcome.generated == trace.output).all()


def test_training_goes_on_between_and_after_requests_and_ends() -> None:
    tuning = job(steps=2)
    trace = Trace(np.array([0.0, 5.0]), np.array([20, 20]), np.array([10, 10]))
    setting = Setting(60, 4, Limits(max_seqs=4), SLO(tbt_s=0.05))
    outcome = run(trace, scheduler("flexllm"), setting, tuning=tuning)
    assert tuning.over and tuning.position.tokens == 2 * (40 + 24)
    assert outcome.unfinished == 0


def test_a_limit_below_inference_alone_starves_training_and_says_so() -> None:
    tuning, made = job(), scheduler("flexllm", slo_ms=5)
    assert isinstance(made, CoServe)
    run(Trace(np.zeros(1), np.array([8]), np.array([20])), made, Setting(60, 4), tuning=tuning)
    assert tuning.position.tokens == 0
    assert "raise slo_ms" in made.starved and "in 20 iterations" in made.starved


def test_no_limit_caps_the_tokens_of_an_iteration() -> None:
    tuning = job(lengths=(1000,), page=1000)
    made = scheduler("flexllm", most_tokens=32)
    trace = Trace(np.zeros(1), np.array([8]), np.array([3]))
    seen: list[int] = []
    inner = tuning.run

    def count(pieces: Any) -> None:
        seen.extend(piece.high - piece.low for piece in pieces)
        inner(pieces)

    tuning.run = count  # type: ignore[method-assign]
    run(trace, made, Setting(60, 4, Limits(max_seqs=4)), tuning=tuning)
    assert seen and max(seen) <= 32


def test_pages_that_training_may_not_have_leave_it_waiting() -> None:
    tuning = job(lengths=(40,))
    run(
        Trace(np.zeros(1), np.array([8]), np.array([30])),
        scheduler("flexllm", ft_kv_fraction=0.1),  # 6 pages; it needs 10
        Setting(60, 4, slo=SLO(tbt_s=0.5)),
        tuning=tuning,
    )
    assert tuning.position.tokens == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base": "flexllm"}, "flexllm on itself"),
        ({"base": "semi-pd"}, "has 2 lanes"),
        ({"base": "int8"}, "is no scheduler"),
    ],
)
def test_bases_it_cannot_wrap(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        scheduler("flexllm", **given)


def test_times_are_found_again_from_what_they_give() -> None:
    true = PieceTime(0.01, 0.002, 1e-5)
    pieces = [(0, 8), (8, 40), (100, 110), (40, 104), (7, 8), (200, 512)]
    found = PieceTime.fit(pieces, [true(*piece) for piece in pieces])
    assert found.fixed == pytest.approx(0.01) and found.token == pytest.approx(0.002)
    with pytest.raises(BadInput, match="fit it"):
        PieceTime(float("nan"), 1.0)


def test_forward_rows_join_the_pass_or_cost_their_own() -> None:
    position = Position(Course.of([10], 2, accum=1, steps=1))
    pieces = (Forward(0, 10), Backward(1, 0, 10), Backward(0, 0, 10))
    apart, together = TIME, replace(TIME, joined=True)
    load = Load(4, 0.0, 4, 40, 4, 4)
    base = 2 * TIME.backward(0, 10) + TIME.step
    assert apart.seconds(COST, load, position, pieces) == pytest.approx(base + COST(load) + TIME.forward(0, 10))
    rows = Load(14, 50.0, 4, 40, 5, 14)
    assert together.seconds(COST, load, position, pieces) == pytest.approx(base + COST(rows))


# The engine, with real gradients


def trainer(model: LanguageModel, steps: int = 3) -> TokenTrainer:
    random = np.random.default_rng(0)
    examples = [Example.of(random.integers(0, model.architecture.vocab, n)) for n in (50, 30, 70)]
    stack = stack_of(model)
    adapters = Adapters.fresh(stack, LoraSettings(4, 8.0))
    return TokenTrainer(stack, adapters, examples, accum=2, steps=steps, optimiser=AdamWSettings(lr=1e-2))


def served(model: LanguageModel, tuning: FineTune | None, slug: str = "flexllm") -> Engine:
    return Engine(model, scheduler(slug), pages=40, cost=COST, slo=SLO(tbt_s=0.06), prefix=False, tuning=tuning)


def test_tokens_are_the_same_with_training_and_adapters_those_of_training_alone(
    tiny_served: LanguageModel, random: np.random.Generator
) -> None:
    requests = [Request(p, 12, ignore_end=True) for p in prompts(tiny_served, 6, random)]
    plain = served(tiny_served, None)
    for request in requests:
        plain.submit(request)
    wanted = drain(plain)[0]
    published: dict[int, Adapters] = {}
    tuning = FineTune(trainer(tiny_served), TIME, kv_pages(1, 64), published.__setitem__)
    engine = served(tiny_served, tuning)
    for request in requests:
        engine.submit(request)
    assert drain(engine)[0] == wanted
    while engine.active:
        engine.step()
    alone = trainer(tiny_served)
    while not alone.position.finished:
        alone.run(alone.position.piece(alone.position.left))
    assert tuning.over and not tuning.error and sorted(published) == [1, 2, 3]
    assert engine.state.lent == 0 and engine.state.free_pages == 40
    assert relative_error(published[3].pairs, alone.adapters.pairs) <= 1e-3  # AdamW magnifies what is near nothing
    assert relative_error(published[2].pairs, published[3].pairs) > 1e-3


def test_a_job_that_diverges_or_is_cancelled_leaves_the_engine_serving(tiny_served: LanguageModel) -> None:
    for cancel in (False, True):
        slow = TuningTime(PieceTime(0.002, 2e-3), PieceTime(0.002, 2e-3))
        tuning = FineTune(trainer(tiny_served), slow, kv_pages(1, 64))
        engine = served(tiny_served, tuning)
        engine.step()
        engine.step()
        assert tuning.position.begun and engine.state.lent
        if cancel:
            tuning.cancel()
        else:
            tuning.trainer.stack.final_norm.fill_(float("nan"))
            tuning.drop()
        id = engine.submit(Request([1, 2, 3], 5, ignore_end=True))
        assert len(drain(engine)[0][id]) == 5
        while engine.active:
            engine.step()
        assert tuning.over and tuning.trainer.version == 0 and tuning.trainer.held_bytes == 0
        assert ("no number" in tuning.error) != cancel
        assert engine.state.free_pages == 40


def test_a_scheduler_that_does_not_train_is_refused(tiny_served: LanguageModel) -> None:
    with pytest.raises(BadInput, match="put flexllm into the recipe"):
        served(tiny_served, FineTune(trainer(tiny_served), TIME), "sarathi-serve")


def test_measuring_leaves_a_trainer_as_it_was(tiny_served: LanguageModel) -> None:
    made = trainer(tiny_served)
    cost = measure_pieces(made, (8, 16, 50), rounds=1)
    assert made.position == Position(made.position.course) and made.held_bytes == 0 and made.version == 0
    assert cost.forward(0, 10) > 0 and cost.backward(0, 10) > 0
