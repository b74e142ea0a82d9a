"""Load runs of the real engine and of the simulator give the same kind of outcome; capacity brackets the limit."""

from __future__ import annotations

import numpy as np
import pytest
from serving_traces import COST, SCHEDULERS, scheduler

from headway.llm.language_model import LanguageModel
from headway.serving.capacity import capacity
from headway.serving.engine import Engine
from headway.serving.outcome import Outcome
from headway.serving.replay import replay, requests
from headway.serving.schedulers.base import SLO
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import Trace, generate


class FastClock:
    """A clock that runs only when it is read: a replay without waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now


@pytest.mark.parametrize("slug", SCHEDULERS)
def test_a_replay_serves_every_request_of_the_trace(slug: str, tiny_served: LanguageModel) -> None:
    random = np.random.default_rng(0)
    trace = Trace(np.sort(random.uniform(0, 0.2, 12)), random.integers(1, 300, 12), random.integers(1, 20, 12))
    engine = Engine(tiny_served, scheduler(slug), pages=60, cost=COST, clock=FastClock())
    run = replay(engine, trace)
    assert (run.outcome.generated == trace.output).all()
    assert [len(run.tokens[at]) for at in range(12)] == trace.output.tolist()
    values, counts = run.outcome.gaps
    assert counts.sum() == (trace.output - 1).sum() and (values > 0).all()
    assert run.outcome.tokens >= (trace.prompt + trace.output - 1).sum()
    assert len(engine.state.gaps) <= 12  # a server that runs for months keeps those of its last step only
    assert (run.outcome.delay >= 0).all() and (run.outcome.ttft > run.outcome.delay).all()


def test_rows_that_share_page_ids_share_their_tokens() -> None:
    trace = Trace(np.zeros(3), np.array([130, 70, 130]), np.ones(3, int), [[7, 8], [7], [9, 8]])
    first, second, third = (request.tokens for request in requests(trace, 1000))
    assert first[:64] == second[:64] and first[64:128] != third[64:128] and len(second) == 70


def test_capacity_brackets_the_rate_at_which_the_limit_breaks() -> None:
    slo = SLO(tbt_s=0.04)
    setting = Setting(pages=4000, slo=slo)

    def run(rate: float) -> Outcome:
        trace = generate("azure-conv", 150, rate, seed=1).scaled(0.1, 200, 30)
        return simulate(trace, scheduler("vllm-like"), OneLane(COST), setting)

    found = capacity(run, slo, guess=1.0, tolerance=0.05)
    assert found.outcome is not None and found.outcome.gap_quantile(0.99) <= 0.04
    failed = [rate for rate, held in found.runs if not held]
    assert found.rate < min(failed) <= found.rate * 1.06
