"""The thread pool: any number of threads, several callers at once, and children of a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from headway.kernels import cpu


def product(threads: int = 0):
    random = np.random.default_rng(0)
    weight = cpu.pack_dense(random.standard_normal((700, 96)).astype(np.float32))
    return weight.matmul(random.standard_normal((5, 96)).astype(np.float32), threads=threads)


def test_more_threads_than_cores_give_the_same_bits():
    expected = product(1)
    for threads in (2, 3, 7, 16):
        for _ in range(20):
            assert np.array_equal(product(threads), expected)


def test_callers_from_several_threads_do_not_disturb_each_other():
    expected = product(1)
    with ThreadPoolExecutor(6) as callers:
        assert all(np.array_equal(y, expected) for y in callers.map(product, [2, 3, 0, 1, 2, 4] * 20))


def test_a_forked_child_has_a_pool_of_its_own():
    expected = product(2)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(product(2), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(product(2), expected)


def test_the_thread_count_can_be_set_and_reset():
    before = cpu.threads()
    try:
        cpu.set_threads(3)
        assert cpu.threads() == 3
        cpu.set_threads(0)
        assert cpu.threads() == len(os.sched_getaffinity(0))
    finally:
        cpu.set_threads(before)


def test_shared_phases_are_counted():
    before = cpu.pool_counts()
    for _ in range(50):
        product(2)
    after = cpu.pool_counts()
    assert after["phases"] + after["alone"] > before["phases"] + before["alone"]


def test_helpers_that_lose_their_cores_inside_tasks_finish_them():
    """Twice as many busy processes as cores: a helper waits for its core again and again, also inside a task."""
    expected = product(1)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
    try:
        assert all(np.array_equal(product(threads), expected) for threads in [2, 3, 2, 5] * 100)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_process_ends_while_helpers_wait():
    code = (
        "import numpy as np; from headway.kernels import cpu;"
        "cpu.pack_dense(np.ones((900, 64), np.float32)).matmul(np.ones((4, 64), np.float32), threads=4)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
