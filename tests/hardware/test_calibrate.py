"""Calibration recovers the cost of a kernel whose cost is known, on a clock that the kernel itself moves."""

from types import SimpleNamespace

import numpy as np
import pytest
from hardware_examples import MIB, make_target
from hypothesis import given
from hypothesis import strategies as st

from headway.hardware import calibrate as calibrate_module
from headway.hardware.calibrate import (
    Effort,
    calibrate,
    cold_bytes,
    fixed_cost,
    measure_form,
    warm_bytes,
)

SHAPES = [(256, 256), (1024, 256), (256, 1024)]
CALL_S, PER_WEIGHT_S, COLD = 2e-6, 1e-11, 3.0


class Clock:
    """Time that only moves when something says it took some; every eleventh call loses a time slice."""

    def __init__(self):
        self.now = 0.0
        self.calls = 0

    def perf_counter(self):
        return self.now

    def take(self, seconds):
        self.calls += 1
        self.now += seconds + (4e-3 if self.calls % 11 == 0 else 0.0)


class Machine:
    """Kernels that take CALL_S + rows * weights * PER_WEIGHT_S, COLD times that after the caches were cleared."""

    def __init__(self, clock, form="int4", bits=4.5, build_s=0.0):
        self.clock, self.form, self.bits, self.build_s = clock, form, bits, build_s
        self.made = []
        self.sweeps = 0

    def make(self, out, inside, seed):
        self.clock.now += self.build_s
        weight = Stored(self, (out, inside))
        self.made.append(weight)
        return weight

    def sweep(self):
        self.sweeps += 1
        for weight in self.made:
            weight.cold = True


class Stored:
    def __init__(self, machine, shape):
        self.machine, self.shape, self.form, self.cold = machine, shape, machine.form, False
        self.bits_per_weight = machine.bits
        self.nbytes = int(shape[0] * shape[1] * machine.bits / 8)

    def native(self):
        return self

    def matmul(self, x):
        assert x.dtype == np.float32 and x.shape[1] == self.shape[1] and x.flags.c_contiguous
        cost = x.shape[0] * self.shape[0] * self.shape[1] * PER_WEIGHT_S
        self.machine.clock.take(CALL_S + cost * (COLD if self.cold else 1.0))
        self.cold = False


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(calibrate_module, "time", clock)
    return clock


TARGET = make_target()
EFFORT = Effort(rows=(1, 8), cold_rows=(1,))


def measure(machine, **changes):
    options = {"threads": 1, "isa": "avx2", "effort": EFFORT, "clears": machine, **changes}
    return measure_form(machine.make, SHAPES, TARGET, **options)


def test_the_known_cost_is_found(clock):
    machine = Machine(clock)
    rate = measure(machine)
    assert (rate.form, rate.isa, rate.threads) == ("int4", "avx2", 1)
    assert rate.bits_per_weight == pytest.approx(4.5, rel=1e-3)
    assert rate.call_s == pytest.approx(CALL_S, rel=1e-3)
    found = {(point.rows, point.set_bytes > 32 * MIB): point.seconds_per_weight for point in rate.points}
    assert found == {
        (1, False): pytest.approx(PER_WEIGHT_S, rel=1e-3),
        (8, False): pytest.approx(8 * PER_WEIGHT_S, rel=1e-3),
        (1, True): pytest.approx(COLD * PER_WEIGHT_S, rel=1e-3),
    }
    assert machine.sweeps >= 3


def test_the_warm_set_outgrows_the_private_caches_and_fits_the_shared_one(clock):
    rate = measure(Machine(clock))
    warm = min(point.set_bytes for point in rate.points)
    assert 2 * (MIB + 32 * 1024) * TARGET.cores <= warm <= 16 * MIB + MIB
    assert warm_bytes(TARGET) <= warm
    assert cold_bytes(TARGET) == 64 * MIB


def test_a_slow_maker_stops_after_one_of_each_shape(clock):
    machine = Machine(clock, build_s=1.0)
    measure(machine)
    assert [weight.shape for weight in machine.made] == SHAPES


def test_equal_shapes_are_measured_once(clock):
    machine = Machine(clock, build_s=1.0)
    measure_form(machine.make, SHAPES * 5, TARGET, threads=1, isa="avx2", effort=EFFORT, clears=machine)
    assert len(machine.made) == 3


def test_a_target_learns_every_form(clock):
    one, other = Machine(clock), Machine(clock, form="int8", bits=8.5)
    target = calibrate(TARGET, [one.make, other.make], SHAPES, threads=1, isa="avx2", effort=EFFORT, clears=one)
    assert [kernel.form for kernel in target.kernels] == ["int4", "int8"]
    assert target.fingerprint == TARGET.fingerprint


def test_a_known_form_is_left_unless_asked_again(clock):
    machine = Machine(clock)
    options = {"threads": 1, "isa": "avx2", "effort": EFFORT, "clears": machine}
    target = calibrate(TARGET, [machine.make], SHAPES, **options)
    swept = machine.sweeps
    assert calibrate(target, [machine.make], SHAPES, **options) is target
    assert machine.sweeps == swept
    assert len(calibrate(target, [machine.make], SHAPES, **options, again=True).kernels) == 1
    assert machine.sweeps > swept
    other = Machine(clock, bits=3.5)
    assert len(calibrate(target, [other.make], SHAPES, **options).kernels) == 2


@given(
    st.floats(1e-7, 1e-5),
    st.floats(1e-13, 1e-10),
    st.lists(st.integers(64, 4096), min_size=2, max_size=6, unique=True),
)
def test_the_fixed_cost_of_a_line_is_its_intercept(constant, slope, sizes):
    seconds = {(n, n): constant + slope * n * n for n in sizes}
    found = fixed_cost(seconds)
    assert found == pytest.approx(min(constant, 0.9 * min(seconds.values())), rel=1e-3)


def test_one_shape_says_nothing_of_a_fixed_cost():
    assert fixed_cost({(8, 8): 1.0}) == fixed_cost({(8, 4): 1.0, (4, 8): 2.0}) == 0.0


def test_the_real_sweeper_and_a_real_product():
    """With the machine's own clock and instruments: figures exist and are positive, nothing more."""

    class Real:
        form, bits_per_weight = "dense", 32.0

        def __init__(self, out, inside, seed):
            self.shape = (out, inside)
            self.w = np.random.default_rng(seed).standard_normal((inside, out), dtype=np.float32)
            self.nbytes = self.w.nbytes

        def native(self):
            return self.w

        def matmul(self, x):
            return x @ self.w

    rate = measure_form(
        Real, [(64, 64), (128, 64)], TARGET, threads=1, isa="numpy", effort=Effort(0.01, 0.001, (1,), (1,))
    )
    assert len(rate.points) == 2
    assert all(point.seconds_per_weight > 0 for point in rate.points)


def test_effort_may_be_a_namespace_of_the_same_fields(clock):
    machine = Machine(clock)
    few = SimpleNamespace(build_s=0.0, point_s=0.0, rows=(1,), cold_rows=())
    assert len(measure(machine, effort=few).points) == 1
