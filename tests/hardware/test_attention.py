"""Attention's rate is what one more key costs, whatever else a step does."""

import numpy as np
import pytest
from hardware_examples import make_target

from headway.hardware import attention as attention_module
from headway.hardware.attention import (
    DEEP,
    QUERIES,
    SHALLOW,
    AttentionShape,
    measure_attention,
    native_steps,
)
from headway.hardware.bench import native_module
from headway.hardware.rates import Rates
from headway.llm.runtime import KV_TYPES

SHAPE = AttentionShape(heads=8, kv_heads=2, head_dim=16)
TARGET = make_target()


class Clock:
    """Moves when a step runs; every ninth reading finds that a time slice was lost."""

    def __init__(self):
        self.now, self.reads, self.cold = 0.0, 0, False

    def perf_counter(self):
        self.reads += 1
        self.now += 5e-3 if self.reads % 9 == 0 else 0.0
        return self.now

    def sweep(self):
        self.cold = True

    def steps(self, keys, queries, rest_s=1e-5, per_element_s=1e-11):
        def call():
            slow = 4.0 if self.cold else 1.0
            self.now += rest_s + queries * keys * SHAPE.elements_per_key * per_element_s * slow
            self.cold = False

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(attention_module, "time", clock)
    return clock


def measure(clock, steps):
    return measure_attention(steps, SHAPE, 2.0, TARGET, form="kv:f16", threads=1, isa="avx2", clears=clock, point_s=0.0)


def test_the_known_cost_of_a_key_is_found_whatever_the_rest_costs(clock):
    rate = measure(clock, clock.steps)
    found = [(point.rows, point.set_bytes, point.seconds_per_weight) for point in rate.points]
    held = DEEP * SHAPE.elements_per_key * 2
    one, many = QUERIES
    assert found == [
        (4 * one, held, pytest.approx(1e-11, rel=1e-3)),
        (4 * one, 64 << 20, pytest.approx(4e-11, rel=1e-3)),
        (4 * many, held, pytest.approx(many * 1e-11, rel=1e-3)),
    ]
    assert (rate.form, rate.bits_per_weight) == ("kv:f16", 16)


def test_depth_that_costs_nothing_is_noise_and_still_positive(clock):
    rate = measure(clock, lambda keys, queries: clock.steps(0, queries))
    assert all(point.seconds_per_weight > 0 for point in rate.points)


def test_a_prediction_reads_the_rate(clock):
    rates = Rates(TARGET.with_kernels([measure(clock, clock.steps)]), 1)
    elements = 1000 * SHAPE.elements_per_key
    assert rates.product_s("kv:f16", 2 * elements, elements, 4, 1e6) == pytest.approx(elements * 1e-11, rel=1e-3)
    assert rates.guessed == set()


@pytest.mark.parametrize("kv", KV_TYPES)
def test_native_steps_leave_the_cache_as_it_was(kv, monkeypatch):
    fed = []
    real = native_module()

    class Spy:
        def __init__(self, model):
            self.model = model

        def sequence(self):
            made = self.model.sequence()
            fed.append(made)
            return made

        def step(self, *arguments):
            logits = self.model.step(*arguments)
            assert np.isfinite(logits).all()
            return logits

    class Module:
        make_model = staticmethod(lambda description: Spy(real.make_model(description)))

    monkeypatch.setattr(attention_module, "native_module", Module)
    steps = native_steps(SHAPE, kv=kv, threads=1)
    for queries in QUERIES:
        call = steps(SHALLOW, queries)
        before = fed[-1].length
        assert before == SHALLOW - (queries + 1) // 2
        call()
        call()
        assert fed[-1].length == before
