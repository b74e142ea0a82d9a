"""Two lanes over one set of weights: the bits of the single step, whatever the shares and however often they move."""

from __future__ import annotations

import os
import threading

import native_models as models
import numpy as np
import pytest

from headway.core.errors import BadInput
from headway.kernels import cpu
from headway.llm.native import NativeRuntime

TOKENS = np.random.default_rng(3).integers(0, 97, 1500)


def runtime(name: str = "gemma3", form: str = "int8", threads: int = 0) -> NativeRuntime:
    arch = models.architecture(name)
    weights, vectors = models.random_parts(arch, form)
    return NativeRuntime(arch, weights, vectors, threads=threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.8])
def test_both_lanes_give_the_bits_of_a_step_alone(threads: int, share: float) -> None:
    native = runtime(threads=threads)
    expected = native.begin().feed(TOKENS)
    generated = native.begin()
    expected_steps = [generated.feed(TOKENS[i : i + 1]) for i in range(60)]
    lanes = native.lanes()
    assert lanes.cores == threads
    lanes.share(share)
    got: dict[str, list[np.ndarray]] = {"prompts": [], "answers": []}

    def prompts() -> None:
        for _ in range(3):
            session = native.begin()
            for at in range(0, 1500, 500):
                logits = lanes.step(0, [session], [TOKENS[at : at + 500]], [at == 1000])
            got["prompts"].append(logits[0])

    def answers() -> None:
        session = native.begin()
        got["answers"] += [lanes.step(1, [session], [TOKENS[i : i + 1]], [True])[0] for i in range(60)]

    both = [threading.Thread(target=prompts), threading.Thread(target=answers)]
    for thread in both:
        thread.start()
    for step in range(50):
        lanes.share(share if step % 2 else 1.0 - share)
    for thread in both:
        thread.join()
    assert len(got["prompts"]) == 3 and all(np.array_equal(logits, expected) for logits in got["prompts"])
    assert np.array_equal(got["answers"], expected_steps)


def test_a_lane_alone_and_a_step_of_the_runtime_beside_lanes() -> None:
    native = runtime("llama", "int4")
    expected = native.begin().feed(TOKENS[:300])
    lanes = native.lanes()
    for lane in (0, 1):
        assert np.array_equal(lanes.step(lane, [native.begin()], [TOKENS[:300]], [True])[0], expected)
    seen: list[bool] = []

    def other() -> None:
        seen.extend(np.array_equal(native.begin().feed(TOKENS[:300]), expected) for _ in range(10))

    thread = threading.Thread(target=other)
    thread.start()
    for _ in range(10):
        assert np.array_equal(lanes.step(0, [native.begin()], [TOKENS[:300]], [True])[0], expected)
    thread.join()
    assert seen == [True] * 10


def test_tables_of_positions_grow_while_the_other_lane_reads_them() -> None:
    native = runtime("gemma3")
    long = np.resize(TOKENS, 6000)
    expected = native.begin().feed(long)
    fresh = runtime("gemma3")
    lanes = fresh.lanes()
    answers = fresh.begin()
    stop = threading.Event()
    wrong: list[int] = []
    first = [native.begin().feed(TOKENS[: n + 1]) for n in range(8)]

    def decode() -> None:
        while not stop.is_set():
            answers.rewind(0)
            for n in range(8):
                logits = lanes.step(1, [answers], [TOKENS[n : n + 1]], [True])[0]
                wrong.extend([n] if not np.array_equal(logits, first[n]) else [])

    thread = threading.Thread(target=decode)
    thread.start()
    session = fresh.begin()
    for at in range(0, 6000, 250):
        logits = lanes.step(0, [session], [long[at : at + 250]], [True])
    stop.set()
    thread.join()
    assert not wrong and np.array_equal(logits[0], expected)


def test_the_caller_may_run_where_it_ran_before() -> None:
    before = os.sched_getaffinity(0)
    native = runtime("llama", threads=2)
    native.lanes().step(1, [native.begin()], [TOKENS[:40]], [True])
    assert os.sched_getaffinity(0) == before


def test_a_step_that_finds_no_memory_leaves_its_lane_usable() -> None:
    native = runtime("llama")
    expected = native.begin().feed(TOKENS[:200])
    lanes = native.lanes()
    session = native.begin()
    cpu.fail_allocation(1)
    try:
        with pytest.raises(MemoryError):
            lanes.step(0, [session], [TOKENS[:200]], [True])
    finally:
        cpu.fail_allocation(0)
    assert session.length == 0
    assert np.array_equal(lanes.step(0, [session], [TOKENS[:200]], [True])[0], expected)


def test_bad_lanes_and_shares_are_refused() -> None:
    native = runtime("llama")
    lanes = native.lanes()
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            lanes.share(share)
    with pytest.raises(ValueError, match="lanes are 0 and 1"):
        lanes.step(2, [native.begin()], [TOKENS[:1]], [True])
    other = runtime("llama")
    with pytest.raises(ValueError, match="another model"):
        lanes.step(0, [other.begin()], [TOKENS[:1]], [True])
    with pytest.raises(BadInput):
        native.begin().rewind(3)
