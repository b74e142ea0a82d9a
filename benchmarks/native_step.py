"""Decode, prefill and batched steps of the native runtime, against a plain read of the same weights.

    python benchmarks/native_step.py [MODEL] [--threads 1,2] [--rounds 40] [--levels avx512,avx2] [--prompt 512]

Every round times one of each, one after the other, so that all see the same machine; the table gives quartiles over
rounds. `cpu` is the calling thread's own time: with one thread it hardly feels what else runs on the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import headway
from headway.kernels import cpu
from headway.llm.language_model import LanguageModel
from headway.llm.native import NativeRuntime


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and own CPU seconds of one call."""
    wall, own = time.perf_counter(), time.thread_time()
    run()
    return time.perf_counter() - wall, time.thread_time() - own


def cases(native: NativeRuntime, prompt: int, batches: list[int]) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> (tokens that a call makes, the call)."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, native.architecture.vocab, prompt)
    one = tokens[:1]

    def decode(batch: int, depth: int) -> Callable[[], object]:
        sessions = [native.begin(depth + 8) for _ in range(batch)]
        for session in sessions:
            session.feed(random.integers(0, native.architecture.vocab, depth))

        def step() -> None:
            native.step(sessions, [one] * batch)
            for session in sessions:
                session.rewind(depth)

        return step

    made: dict[str, tuple[int, Callable[[], object]]] = {
        "read": (1, lambda: native.model.read(native.threads)),
        "decode": (1, decode(1, 128)),
        "decode at 2048": (1, decode(1, 2048)),
        f"prefill {prompt}": (prompt, lambda: native.begin(prompt).feed(tokens)),
    }
    for batch in batches:
        made[f"batch {batch}"] = (batch, decode(batch, 128))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--levels", default=",".join(reversed(cpu.levels()[1:])) or "portable")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--batches", default="4,8,16")
    options = parser.parse_args()
    model = headway.load(options.model)
    assert isinstance(model, LanguageModel)
    native = model.runtime
    assert isinstance(native, NativeRuntime)
    print(f"{options.model}: {native.weight_bytes / 1e6:.1f} MB read per token")
    work = cases(native, options.prompt, [int(batch) for batch in options.batches.split(",") if batch])
    settings = [(level, int(n)) for level in options.levels.split(",") for n in options.threads.split(",")]
    samples: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for level, threads in settings:
            native.threads = threads
            with cpu.at_level(level):
                for name, (_, run) in work.items():
                    samples.setdefault((level, threads, name), []).append(timed(run))
    print(f"{'':16} {'threads':>7} {'level':>8} {'tok/s p50':>10} {'p90':>8} {'best':>8} {'of cpu':>8} {'GB/s p50':>9}")
    for (level, threads, name), pairs in samples.items():
        walls, owns = np.sort([wall for wall, _ in pairs]), min(own for _, own in pairs)
        count = work[name][0]
        middle, fast, best = (count / np.quantile(walls, q) for q in (0.5, 0.1, 0.0))
        read = native.weight_bytes / np.quantile(walls, 0.5) / 1e9
        print(
            f"{name:16} {threads:7} {level:>8} {middle:10.0f} {fast:8.0f} {best:8.0f} {count / owns:8.0f} {read:9.1f}"
        )
    print("pool:", cpu.pool_counts())


if __name__ == "__main__":
    main()
