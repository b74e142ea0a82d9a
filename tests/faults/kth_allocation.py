"""Fails the k-th native allocation of a phase for k = 1, 2, ... until it passes; run below `failing_new`.

    python kth_allocation.py FOLDER EVERY

Two allocators: `pages` is the arena that weights, keys, values and scratch come from, `new` is everything else the
extension's C++ asks for. Tries every EVERY-th k. After each failure the error must be typed, the memory as before, and
the next request must give the same logits. Prints a JSON document: for each allocator and phase, how many k failed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import headway
from headway.core.errors import HeadwayError
from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.grouped import Int4Weight
from headway.llm.weights.quantizers_gptq import gptq

MOST = 100_000
PROMPT = np.arange(150) % 250
FOLLOWS = np.arange(70) % 250


def within() -> tuple[int, int]:
    """Addresses of the extension's code."""
    with Path("/proc/self/maps").open() as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(str(_cpu.__file__))]
    return min(int(a, 16) for a, _ in spans), max(int(b, 16) for _, b in spans)


class Phases:
    """What is tried: each phase starts from the same state and gives an array to be compared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = headway.load(str(folder))
        random = np.random.default_rng(0)
        self.matrix = random.standard_normal((40, 72)).astype(np.float32)
        inputs = random.standard_normal((200, 72)).astype(np.float32)
        self.hessian = inputs.T @ inputs

    def load(self) -> Callable[[], Any]:
        return lambda: headway.load(str(self.folder)).logits(PROMPT[:5])

    def prefill(self) -> Callable[[], Any]:
        session = self.model.runtime.begin()
        return lambda: session.feed(PROMPT, every=True)

    def decode(self) -> Callable[[], Any]:
        """Far enough to need new pages of keys and values."""
        session = self.model.runtime.begin()
        session.feed(PROMPT)
        return lambda: np.stack([session.feed(FOLLOWS[i : i + 1]) for i in range(len(FOLLOWS))])

    def quantise(self) -> Callable[[], Any]:
        def make() -> Any:
            found = gptq(self.matrix, self.hessian.copy(), 4, 32)
            kept = Int4Weight(found.codes, found.scale, found.minimum, group_size=32)
            planes = BitPlanes.from_codes(found.codes, found.scale, found.minimum, bits=4, group_size=32)
            x = self.matrix[:3]
            return np.concatenate([kept.matmul(x), planes.matmul(x)])

        return make

    def request(self) -> Any:
        session = self.model.runtime.begin()
        return np.stack([session.feed(PROMPT), session.feed(FOLLOWS[:1])])


def used() -> int:
    gc.collect()
    return int(cpu.memory()["total"]["current"])


def attempts(phases: Phases, name: str, fail: Callable[[int], None], every: int) -> int:
    """Fail k = 1, 1 + every, ...; gives how many attempts failed."""
    prepare = getattr(phases, name)
    expected, served = prepare()(), phases.request()
    before = used()
    for failed, k in enumerate(range(1, MOST, every)):
        act = prepare()
        said: BaseException | None = None
        fail(k)
        try:
            found = act()
        except BaseException as error:
            said = error
        finally:
            fail(0)
        if said is None:
            assert np.array_equal(found, expected)
            return failed
        assert isinstance(said, (MemoryError, HeadwayError)), f"{name}, k = {k}: {said!r}"
        said.__traceback__ = None
        if name in ("prefill", "decode"):  # the same sequence goes on, as if nothing had been asked
            del act
        else:
            assert np.array_equal(act(), expected), f"{name}, k = {k}"
            del act
        found = None
        assert used() == before, f"{name}, k = {k}: {used() - before} bytes are lost"
        assert np.array_equal(phases.request(), served), f"{name}, k = {k}"
    raise AssertionError(f"{name} still fails at k = {MOST}")


def main() -> None:
    folder, every = Path(sys.argv[1]), int(sys.argv[2])
    cpu.set_threads(2)
    shim = ctypes.CDLL(None)
    shim.failing_new_watch.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    shim.failing_new.argtypes = [ctypes.c_long]
    phases = Phases(folder)
    for name in ("load", "prefill", "decode", "quantise"):
        getattr(phases, name)()()
    shim.failing_new_watch(*within())
    found = {}
    for allocator, fail in (("pages", cpu.fail_allocation), ("new", shim.failing_new)):
        for name in ("load", "prefill", "decode", "quantise"):
            print(allocator, name, file=sys.stderr, flush=True)
            found[f"{allocator} {name}"] = attempts(phases, name, fail, every)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
