"""A machine made of arithmetic: a clock that only arms move, with the noise of a shared two-core machine."""

from __future__ import annotations

import random
from collections.abc import Callable


class Machine:
    """`arm(seconds)` makes a callable that takes that long here. Noise is multiplicative and in wall time, so that a
    long sample meets more of it: slow drift of the clock rate, jitter, two speeds (the other core busy or not),
    preemption for whole time slices while neighbours run."""

    def __init__(self, seed: int, *, neighbours: int = 0, jitter: float = 0.01, quiet: bool = False) -> None:
        self.now = 0.0
        self.neighbours = neighbours
        self.jitter = jitter
        self.quiet = quiet
        self._random = random.Random(seed)
        self._drift = 1.0
        self._slow_until = 0.0
        self._next_change = 0.0

    def perf_counter(self) -> float:
        return self.now

    def arm(self, seconds: float) -> Callable[[], None]:
        return lambda: self._spend(seconds)

    def _spend(self, seconds: float) -> None:
        self.now += seconds if self.quiet else self._noisy(seconds)

    def _noisy(self, seconds: float) -> float:
        draw = self._random
        if self.now >= self._next_change:
            self._next_change = self.now + draw.expovariate(20)
            self._drift *= draw.lognormvariate(0, 0.01)
            if self.neighbours and draw.random() < 0.5:
                self._slow_until = self.now + draw.expovariate(20)
        speed = self._drift * (1.25 if self.now < self._slow_until else 1.0)
        took = seconds * speed * draw.lognormvariate(0, self.jitter)
        for _ in range(self.neighbours):
            if draw.random() < min(1.0, took * 30):  # a neighbour wakes about 30 times a second
                took += draw.choice((0.001, 0.003, 0.004))
        if draw.random() < min(1.0, took * 0.5):  # the kernel, every other second
            took += draw.expovariate(1000)
        return took
