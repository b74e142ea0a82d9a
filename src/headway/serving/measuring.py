"""Measured batches: what the iteration time of a model on this machine is fitted from."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from headway.core.cache import StepCache
from headway.core.progress import Progress
from headway.hardware.iteration_time import IterationTime, Load, fit
from headway.hardware.machine import read_machine
from headway.hardware.probe import is_quiet
from headway.llm.language_model import LanguageModel
from headway.llm.native import NativeRuntime, NativeSession

CHUNKS = (1, 4, 16, 48, 128, 256, 512)
DECODES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CONTEXTS = (16, 256, 1024)
REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """Batches and the seconds each took (the median of its rounds)."""

    loads: tuple[Load, ...]
    seconds: tuple[float, ...]

    def fit(self) -> IterationTime:
        return fit(self.loads, self.seconds)

    def error(self, cost: IterationTime) -> float:
        """Median relative error of a fitted time over these batches."""
        return float(np.median([abs(cost(load) / s - 1.0) for load, s in zip(self.loads, self.seconds, strict=True)]))


@dataclass(frozen=True)
class _Case:
    chunk: int
    chunk_context: int
    decodes: int
    context: int
    last: bool

    @property
    def load(self) -> Load:
        return Load(
            self.chunk + self.decodes,
            self.chunk * (self.chunk_context + self.chunk / 2),
            self.decodes,
            self.decodes * self.context,
            self.decodes + (self.chunk > 0),
            self.decodes + (self.chunk > 0 and self.last),
        )


def cases(context: int, seed: int, count: int, most_decodes: int = DECODES[-1]) -> list[_Case]:
    """Mixed batches that fit a context: pure decodes, pure chunks, and both together."""
    random = np.random.default_rng(seed)
    contexts = [c for c in CONTEXTS if c <= context // 2] or [max(context // 2, 1)]
    few = [n for n in DECODES if n <= most_decodes]
    found = [_Case(0, 0, n, contexts[0], False) for n in few if n]
    found += [_Case(c, 0, 0, 0, False) for c in CHUNKS if c <= context]
    while len(found) < count:
        chunk = int(random.choice([0, *CHUNKS]))
        decodes = int(random.choice(few))
        before = int(random.choice([0, *contexts]))
        if chunk + decodes and before + chunk <= context:
            found.append(_Case(chunk, before, decodes, int(random.choice(contexts)), bool(random.random() < 0.5)))
    return found


def measure(
    runtime: NativeRuntime,
    *,
    count: int = 120,
    seed: int = 0,
    progress: Progress | None = None,
    context: int = 4096,
    most_decodes: int = DECODES[-1],
) -> Measured:
    """Time `count` kinds of batches, each in `REPEATS` rounds spread over the whole measurement.

    context, most_decodes: of the largest batches that the engine will run.
    """
    context = min(context, runtime.architecture.context - 8)
    todo = cases(context, seed, count, most_decodes)
    random = np.random.default_rng(seed)
    vocab = runtime.architecture.vocab
    pool: dict[int, list[NativeSession]] = {}

    def sessions(length: int, many: int) -> list[NativeSession]:
        held = pool.setdefault(length, [])
        while len(held) < many:
            session = runtime.begin()
            for at in range(0, length, 512):
                session.feed(random.integers(0, vocab, min(512, length - at)))
            held.append(session)
        return held[:many]

    def once(case: _Case) -> float:
        rows = sessions(case.context, case.decodes)
        pieces = [random.integers(0, vocab, 1) for _ in rows]
        wanted = [True] * len(rows)
        lengths = [case.context] * len(rows)
        if case.chunk:
            rows = [*rows, sessions(case.chunk_context, case.decodes + 1)[-1]]
            pieces.append(random.integers(0, vocab, case.chunk))
            wanted.append(case.last)
            lengths.append(case.chunk_context)
        begin = time.perf_counter()
        runtime.step(rows, pieces, wanted=wanted)
        seconds = time.perf_counter() - begin
        for session, length in zip(rows, lengths, strict=True):
            session.rewind(length)
        return seconds

    samples: list[list[float]] = [[] for _ in todo]
    with (progress or Progress()).task("measuring batches", REPEATS * len(todo)) as bar:
        for _ in range(REPEATS):
            for at in random.permutation(len(todo)):
                samples[at].append(once(todo[at]))
                bar.advance()
    return Measured(tuple(case.load for case in todo), tuple(float(np.median(s)) for s in samples))


def fit_runtime(runtime: NativeRuntime, progress: Progress | None = None, seed: int = 0) -> IterationTime:
    """The iteration time of a model here."""
    # As few batches as the form needs, at short contexts: a first start should not wait for minutes.
    return measure(runtime, count=72, seed=seed, progress=progress, context=1024).fit()


def iteration_time(
    model: LanguageModel, runtime: NativeRuntime, threads: int, progress: Progress, seed: int = 0
) -> IterationTime:
    """Measured at the first start of this model on this machine that was not busy with other work.

    Another seed: other batches, measured apart.
    """
    cache, key = StepCache(), cost_key(model, threads, seed)
    if not cache.holds(key) and not is_quiet(read_machine()):
        progress.note("this machine is busy: the times of batches are measured high, and not kept")
        return fit_runtime(runtime, progress, seed)
    return IterationTime.from_json(cache.json(key, lambda: fit_runtime(runtime, progress, seed).as_json()))


def cost_key(model: LanguageModel, threads: int, seed: int = 0) -> str:
    """Where the step cache keeps it."""
    apart = (seed,) if seed else ()
    return StepCache.key(
        "iteration-time", model.fingerprint(), model.runtime_kind, read_machine().fingerprint, threads, *apart
    )
