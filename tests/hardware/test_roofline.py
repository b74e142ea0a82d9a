"""Work is bound by the resource that needs the most seconds."""

import pytest
from hardware_examples import KIB, make_target
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.hardware.roofline import Work, bound, limits, product

TARGET = make_target()


def test_one_row_is_bound_by_memory_many_by_arithmetic_small_work_by_dispatch():
    assert bound(product("gemv", 1, 4096, 4096, 4 * 4096 * 4096), TARGET, 1).limit == "memory"
    assert bound(product("gemm", 512, 4096, 4096, 4 * 4096 * 4096), TARGET, 1).limit == "compute"
    assert bound(Work("add", ops=10, nbytes=120), TARGET, 1).limit == "dispatch"


def test_the_ridge_parts_memory_from_compute():
    ridge = bound(Work("any", 1, 1e9), TARGET, 1).ridge
    assert ridge == pytest.approx(1e11 / 3e10)
    assert bound(Work("below", 0.9 * ridge * 1e9, 1e9), TARGET, 1).limit == "memory"
    assert bound(Work("above", 1.1 * ridge * 1e9, 1e9), TARGET, 1).limit == "compute"


def test_data_used_again_soon_comes_from_the_cache():
    again = bound(Work("hot", 1, 16 * KIB, calls=0), TARGET, 1)
    once = bound(Work("cold", 1, 16 * KIB, calls=0, working_set_bytes=1e9), TARGET, 1)
    assert again.memory_s == pytest.approx(16 * KIB / 2e11)
    assert once.memory_s == pytest.approx(16 * KIB / 3e10)


@given(st.floats(0, 1e13), st.floats(1, 1e10), st.integers(0, 1000))
def test_the_floor_is_the_largest_and_every_second_has_a_limit(ops, nbytes, calls):
    work = Work("w", ops, nbytes, calls=calls)
    found = bound(work, TARGET, 2)
    assert found.floor_s == {
        "memory": found.memory_s, "compute": found.compute_s, "dispatch": found.dispatch_s,
    }[found.limit]  # fmt: skip
    assert sum(limits([work, work], TARGET, 2).values()) == pytest.approx(2 * found.floor_s)


def test_a_call_may_have_its_own_cost():
    assert bound(Work("step", 1, 1, calls=3), TARGET, 1, call_s=5e-6).dispatch_s == pytest.approx(15e-6)


def test_intensity():
    assert Work("w", 8, 2).intensity == 4
    assert Work("w", 8, 0).intensity == float("inf")


def test_a_data_type_without_a_rate_is_refused():
    with pytest.raises(BadInput, match="fp8"):
        bound(Work("w", 1, 1, dtype="fp8"), TARGET, 1)
