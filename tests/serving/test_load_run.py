"""A load run is recorded alike of the engine and of the simulator; what was measured is not measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_traces import COST, scheduler

from headway.core.errors import BadInput
from headway.core.evidence import MOMENTS
from headway.llm.language_model import LanguageModel
from headway.serving import load_run
from headway.serving.load_run import LoadBench, Watch, record
from headway.serving.messages import Setup
from headway.serving.schedulers.base import SLO
from headway.serving.simulator import OneLane, Setting, simulate
from headway.serving.trace import Trace, generate, named


@pytest.fixture
def bench(tiny_served: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadBench:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    monkeypatch.setattr(load_run, "iteration_time", lambda *_: COST)
    monkeypatch.setattr(load_run.prepared, "iteration_time", lambda *_: COST)
    trace = Trace(np.linspace(0, 1, 8), np.full(8, 40), np.full(8, 6))
    model = tiny_served.with_runtime("native", 1)
    return LoadBench(model, Setup("tiny", threads=1, kv_bytes=1 << 22, ttft_s=60.0, tbt_s=60.0), trace)


def test_engine_and_simulator_are_recorded_rate_by_rate(bench: LoadBench) -> None:
    runs = bench.run([40.0, 80.0])
    assert [(run.by, run.rate) for run in runs] == [
        ("engine", 40.0),
        ("simulator", 40.0),
        ("engine", 80.0),
        ("simulator", 80.0),
    ]
    for run in runs:
        assert (run.requests, run.finished, run.rejected, run.attainment) == (8, 8, 0, 1.0)
        assert len(run.ttft_s) == len(run.tbt_s) == 101
        assert list(run.ttft_s) == sorted(run.ttft_s) and run.ttft_s[0] > 0
        assert run.pages == runs[0].pages and 0 < max(run.timeline.pages) <= 1
        assert max(run.timeline.running) >= 1 and run.timeline.running[-1] == 0


def test_what_was_measured_before_a_ctrl_c_is_kept(bench: LoadBench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = load_run.replay, []

    def interrupted(*given: object, **named: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(load_run, "replay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run([40.0, 80.0])
    runs = bench.run([40.0, 80.0])
    assert len(calls) == 3  # the first rate was not run again
    assert bench.run([40.0, 80.0]) == runs and len(calls) == 3
    replace(bench, wanted=Setup("tiny", threads=1, seed=1, kv_bytes=1 << 22)).run([40.0])
    assert len(calls) == 4


def test_the_rates_that_nobody_named_rise_to_what_the_simulator_sustains(bench: LoadBench) -> None:
    low, middle, high = bench.rates()
    assert low == pytest.approx(high / 3, rel=0.1) and middle == pytest.approx(2 * high / 3, rel=0.1)


def test_the_two_measured_times_are_held_against_each_other(bench: LoadBench) -> None:
    assert bench.disagreement() == 0.0
    slow = replace(COST, values=tuple(2 * value for value in COST.values), chunk=2 * COST.chunk)
    slow = replace(slow, decode=2 * COST.decode, sequence=2 * COST.sequence, row=2 * COST.row)
    bench.costs = COST, slow
    assert bench.disagreement() == pytest.approx(1.0)


def test_schedulers_of_several_lanes_are_refused(bench: LoadBench) -> None:
    with pytest.raises(BadInput, match="several lanes"):
        replace(bench, model=bench.model.with_scheduler("nexus", {}))


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_a_thinned_timeline_keeps_the_peaks_and_the_order(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    at = np.cumsum(random.exponential(1.0, count))
    watch = Watch(
        [tuple(row) for row in np.column_stack([at, random.integers(0, 99, (count, 2)), random.random(count)])]
    )
    line = watch.timeline()
    assert 1 <= len(line.at_s) == len(line.waiting) == len(line.running) == len(line.pages) <= MOMENTS
    assert list(line.at_s) == sorted(line.at_s)
    rows = np.array(watch.rows)
    assert np.allclose([max(line.waiting), max(line.running), max(line.pages)], rows[:, 1:].max(axis=0), atol=1e-6)
    assert line.at_s[-1] == pytest.approx(at[-1], abs=1e-6)


def test_quantiles_are_those_of_the_outcome_and_attainment_counts_every_request() -> None:
    trace = generate("azure-conv", 60, 4.0).scaled(0.05, 200, 30)
    watch = Watch()
    outcome = simulate(trace, scheduler("sarathi-serve"), OneLane(COST), Setting(4000), watch=watch)
    limit = outcome.ttft_quantile(0.5)
    run = record("simulator", outcome, 4.0, 4000, SLO(ttft_s=limit), watch)
    assert run.ttft_s[50] == pytest.approx(outcome.ttft_quantile(0.5)) and run.tbt_s[99] == outcome.gap_quantile(0.99)
    assert run.attainment == np.mean(outcome.ttft <= limit) and 0.5 <= run.attainment < 0.6
    assert record("simulator", outcome, 4.0, 4000, SLO(), watch).attainment is None


def test_a_trace_that_exceeds_the_context_is_scaled_and_keeps_its_shape() -> None:
    trace = named("azure-conv", 60)
    same, factor = trace.fitted(1 << 20)
    assert same is trace and factor == 1.0
    for context in (16, 100, 1024):
        small, factor = trace.fitted(context)
        assert small.longest <= context and factor == pytest.approx(context / trace.longest, rel=0.2)
        assert np.all(np.abs(small.prompt - np.maximum(trace.prompt * factor, 1)) <= 1)


def test_a_named_trace_begins_with_its_first_request(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrived_s,context_tokens,generated_tokens\n5,10,2\n3,20,4\n9,1,1\n")
    found = named(str(file), 2)
    assert found.arrival.tolist() == [0.0, 2.0] and found.prompt.tolist() == [20, 10]
    assert len(named("azure-code", 30)) == 30 and named("azure-code", 30).arrival[0] == 0
    for source, count, message in ((str(file), 1, "one time"), ("azure", 9, "tables are: azure-conv")):
        with pytest.raises(BadInput, match=message):
            named(source, count)
