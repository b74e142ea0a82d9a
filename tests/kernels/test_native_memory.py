"""Native memory is counted by owner, given back, and running out of it is an error like any other."""

from __future__ import annotations

import numpy as np
import pytest

from headway.kernels import cpu


def test_packed_weights_are_counted_while_they_live():
    before = cpu.memory()["weights"]["current"]
    weight = cpu.pack_dense(np.ones((320, 640), np.float32))
    during = cpu.memory()["weights"]["current"]
    assert weight.nbytes <= during - before <= weight.nbytes + 8192
    del weight
    assert cpu.memory()["weights"]["current"] == before


def test_peaks_start_again_at_the_current_value():
    weight = cpu.pack_dense(np.ones((64, 64), np.float32))
    cpu.pack_dense(np.ones((512, 512), np.float32))
    assert cpu.memory()["weights"]["peak"] >= cpu.memory()["weights"]["current"] + 512 * 512 * 4
    cpu.reset_peaks()
    for use in cpu.memory().values():
        assert use["peak"] == use["current"]
    assert weight.nbytes == 64 * 64 * 4


def test_the_total_is_the_sum_of_the_owners():
    kept = cpu.pack_dense(np.ones((64, 64), np.float32))
    use = cpu.memory()
    assert use["total"]["current"] == sum(use[owner]["current"] for owner in ("weights", "kv", "scratch"))
    assert kept.nbytes > 0


def test_an_allocation_that_fails_is_a_memory_error_and_the_next_one_works():
    x = np.ones((3, 64), np.float32)
    weight = cpu.pack_dense(np.ones((32, 64), np.float32))
    before = cpu.memory()["total"]["current"]
    fails = 0
    for k in range(1, 20):
        cpu.fail_allocation(k)
        try:
            packed = cpu.pack_int4(np.ones((32, 64), np.uint8), np.ones((32, 2), np.float32), None, 32)
            packed.matmul(x)
            weight.matmul(x)
        except MemoryError:
            fails += 1
            packed = None
        finally:
            cpu.fail_allocation(0)
        packed = None
        assert cpu.memory()["total"]["current"] == before
    assert 3 <= fails < 19
    with pytest.raises(MemoryError):
        cpu.fail_allocation(1)
        weight.matmul(x)
    assert np.array_equal(weight.matmul(x), np.full((3, 32), 64, np.float32))
