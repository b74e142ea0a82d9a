"""What the proof of `dfloat11` runs: passes over the coded layers, memory in a child, the off-loading rival, Triton."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.core.errors import HeadwayError
from headway.core.files import cache_folder
from headway.core.sandbox import Limits, run_function
from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.weights.coded import CodedWeight
from headway.llm.weights.huffman import tables
from headway.llm.weights.kernel_timing import Seconds

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

DEPTH = 32
"""Tokens in the keys and values while steps are timed: the weights are what is compared."""

PIECE = 4 << 20
"""Bytes of one read of the rival."""


def expansion(
    groups: Sequence[Sequence[CodedWeight]], level: str, threads: int, *, plain: bool = False
) -> Callable[[], Seconds]:
    """Expands every tile of all groups, each once; `plain`: one symbol at a time by the tables of the format.

    The weights of a group share a codebook.
    """
    natives = [[weight.native() for weight in group] for group in groups]
    luts = [tables(group[0].lengths) for group in groups] if plain else []

    def run() -> Seconds:
        with cpu.at_level(level):
            return _cpu.dfloat11_time(natives, 1, threads, luts)[0]  # type: ignore[no-any-return]

    return run


def speed_up(one: Callable[[], Seconds], two: Callable[[], Seconds], seconds: float) -> float:
    """Time of `one` over `two`, both by the fastest round of each group in so many seconds: where a foreign process
    takes the second core, the pool has it rest for a while, and those rounds were of a single core."""
    deadline = time.perf_counter() + seconds
    found = [(one(), two())]
    while time.perf_counter() < deadline:
        found.append((one(), two()))
    least = np.min(np.array(found), axis=0)
    return float(least[0].sum() / least[1].sum())


class Steps:
    """One step of `batch` sequences, a token each, after `DEPTH` tokens; rewound, so that every step costs the same."""

    def __init__(self, model: LanguageModel, batch: int) -> None:
        self.runtime: Any = model.runtime
        self.sessions = [self.runtime.begin(DEPTH + 1) for _ in range(batch)]
        for number, session in enumerate(self.sessions):
            session.feed(np.arange(1, DEPTH + 1) + number)
        self.tokens = [np.array([DEPTH + 1])] * batch

    def __call__(self) -> None:
        self.runtime.step(self.sessions, self.tokens)
        for session in self.sessions:
            session.rewind(DEPTH)


def prefill(model: LanguageModel, tokens: int) -> Callable[[], None]:
    """One prompt of so many tokens."""
    prompt = np.arange(1, tokens + 1)

    def run() -> None:
        model.runtime.begin(tokens).feed(prompt)

    return run


# ---- memory ---------------------------------------------------------------------------------------------------------


def peak_bytes(model: LanguageModel, prompt_tokens: int, threads: int) -> int:
    """Peak resident bytes of a fresh process that loads the saved model and reads a prompt, over the empty runtime."""
    with tempfile.TemporaryDirectory(prefix="dfloat11-", dir=cache_folder()) as folder:
        model.save(Path(folder))
        arguments = {"folder": folder, "prompt_tokens": prompt_tokens, "threads": threads}
        outcome = run_function(f"{__name__}:serve", arguments, Limits(wall_s=300))
    if not outcome.ok:
        raise HeadwayError(f"measuring memory of {model.name} failed: {outcome.explain()}", "free memory")
    return int(outcome.value)


def serve(folder: str, prompt_tokens: int, threads: int) -> int:
    """In the child."""
    from headway.core.resident import ResidentPeak
    from headway.llm import native  # noqa: F401
    from headway.llm.load import load_saved

    cpu.set_threads(threads)
    with ResidentPeak() as peak:
        model = load_saved(Path(folder))
        session = model.runtime.begin(prompt_tokens + 2)
        session.feed(np.arange(1, prompt_tokens + 1))
        session.feed(np.array([1]))
    return peak.over_bytes


# ---- the rival ------------------------------------------------------------------------------------------------------


class OffLoaded:
    """A step of the whole bfloat16 model, while a second thread reads from disk what the budget does not hold.

    The best an off-loading runtime can do: no byte is waited for before the step ends, and none is copied.
    """

    def __init__(self, steps: Steps, file: Path, missing_bytes: int) -> None:
        self.steps = steps
        self.missing_bytes = missing_bytes
        self.buffer = mmap.mmap(-1, PIECE)  # aligned to pages, as direct reads want it
        self.file = file

    def read(self) -> None:
        """What is missing, past the page cache."""
        descriptor, direct = _open_direct(self.file)
        try:
            done = 0
            while done < self.missing_bytes:
                count = os.preadv(descriptor, [self.buffer], done)
                if count <= 0:
                    raise OSError(f"{self.file}: nothing to read at {done}")
                if not direct:
                    os.posix_fadvise(descriptor, done, count, os.POSIX_FADV_DONTNEED)
                done += count
        finally:
            os.close(descriptor)

    def __call__(self) -> None:
        reading = threading.Thread(target=self.read)
        reading.start()
        self.steps()
        reading.join()


def _open_direct(file: Path) -> tuple[int, bool]:
    try:
        return os.open(file, os.O_RDONLY | getattr(os, "O_DIRECT", 0)), hasattr(os, "O_DIRECT")
    except OSError:  # a file system without direct reads: its pages are dropped before and after
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor, False


@contextmanager
def on_disk(arrays: Iterator[np.ndarray[Any, Any]], nbytes: int) -> Iterator[Path]:
    """A file of at least `nbytes` bytes of those arrays (whole pieces), written through to the disk."""
    with tempfile.TemporaryDirectory(prefix="dfloat11-", dir=cache_folder()) as folder:
        path = Path(folder) / "layers.bin"
        wanted = -(-nbytes // PIECE) * PIECE
        with path.open("wb") as file:
            for array in arrays:
                file.write(np.ascontiguousarray(array).tobytes())
                if file.tell() >= wanted:
                    break
            if file.tell() < wanted:
                file.write(bytes(wanted - file.tell()))
            file.flush()
            os.fsync(file.fileno())
        yield path


# ---- the Triton kernel ----------------------------------------------------------------------------------------------


def triton_equals(
    arrays: Sequence[Mapping[str, np.ndarray[Any, Any]]], shapes: Sequence[tuple[int, int]]
) -> list[bool]:
    """Whether the Triton kernel, interpreted in a child, expands each coded matrix to the CPU kernel's bits."""
    with tempfile.TemporaryDirectory(prefix="dfloat11-", dir=cache_folder()) as folder:
        for number, stored in enumerate(arrays):
            np.savez(Path(folder) / f"{number}.npz", **stored)  # type: ignore[arg-type]
        arguments = {"folder": folder, "shapes": [list(shape) for shape in shapes]}
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        outcome = run_function(f"{__name__}:interpret", arguments, Limits(wall_s=300), environment=environment)
    if not outcome.ok:
        raise HeadwayError(f"the Triton kernel did not run: {outcome.explain()}", "install triton")
    return [bool(same) for same in outcome.value]


def interpret(folder: str, shapes: Sequence[Sequence[int]]) -> list[bool]:
    """In the child, whose environment asks for Triton's interpreter."""
    from headway.kernels.gpu import dfloat11 as gpu
    from headway.llm.weights.huffman import unpack_lengths

    found = []
    for number, (rows, columns) in enumerate(shapes):
        with np.load(Path(folder) / f"{number}.npz") as file:
            stored = {name: file[name] for name in file.files}
        book = unpack_lengths(stored.pop("codebook"))
        packed = gpu.pack(**stored, luts=tables(book), shape=(rows, columns), device="cpu")
        expanded = gpu.expand(packed, per_program=16).view(gpu.torch.int16).numpy().view(np.uint16)
        native = _cpu.pack_dfloat11(*stored.values(), book, rows, columns)
        found.append(bool(np.array_equal(expanded, _cpu.dfloat11_unpack(native))))
    return found
