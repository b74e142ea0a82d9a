"""llama.cpp through `llama-cpp-python`: a GGUF file as it is, or converted by its own quantiser to another type.

Used as its users would for speed: flash attention and repacked weights where it has them, f16 keys and values, one
stream of memory per sequence, logits for the tokens that are asked for only. Its C functions are called directly, a
call per step, so that no Python of its wrapper is timed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.core.cache import StepCache
from headway.core.errors import BadInput, Lacking, need_extra
from headway.llm.language_model import LanguageModel
from headway.llm.scoring import F32, I64, chunks
from headway.optimize.engines.base import DECODED, Repeat

TYPES = {
    "F16": 1,
    "Q8_0": 7,
    "Q6_K": 18,
    "Q5_K_M": 17,
    "Q5_K_S": 16,
    "Q5_1": 9,
    "Q5_0": 8,
    "Q4_K_M": 15,
    "Q4_K_S": 14,
    "Q4_1": 3,
    "Q4_0": 2,
    "Q3_K_L": 13,
    "Q3_K_M": 12,
    "Q3_K_S": 11,
    "Q2_K": 10,
}
"""File types of `llama_model_quantize` that need no importance matrix, by their names."""

PROMPT_ROWS = 512
"""Its default `n_ubatch`."""


def make(model: LanguageModel, variant: str, threads: int) -> list[LlamaCpp]:
    """`""`: the file as it is; a type's name; `all`: every type the file can be converted to."""
    path = model.source
    if path is None:
        raise BadInput(f"llama.cpp reads GGUF files, {model.name} is none", "give e.g. smollm2-135m or a .gguf file")
    if not variant:
        return [LlamaCpp(path, "llama.cpp", threads)]
    if variant != "all" and variant.upper() not in TYPES:
        raise BadInput(f"llama.cpp:{variant} is no type", f"types are: all, {', '.join(TYPES)}")
    names = list(TYPES) if variant == "all" else [variant.upper()]
    return [
        LlamaCpp(converted(path, name, model.fingerprint(), threads), f"llama.cpp:{name}", threads) for name in names
    ]


def converted(path: Path, name: str, fingerprint: str, threads: int) -> Path:
    """The file in another type, from the step cache; weights that are quantised already are quantised a second time."""
    api = library()
    cache = StepCache()

    def build(folder: Path) -> None:
        wanted = api.llama_model_quantize_default_params()
        wanted.ftype, wanted.nthread, wanted.allow_requantize = TYPES[name], threads, True
        if api.llama_model_quantize(bytes(path), bytes(folder / "model.gguf"), ctypes.byref(wanted)):
            raise Lacking(f"llama.cpp could not convert {path.name} to {name}", "leave this type out of --against")

    return cache.folder(cache.key("llama.cpp", version(), fingerprint, name), build) / "model.gguf"


def library() -> Any:
    """The C functions; llama.cpp's own messages are turned off."""
    try:
        import llama_cpp.llama_cpp as api
    except ModuleNotFoundError as error:
        raise need_extra(error.name or "llama_cpp", "llama-cpp") from None
    if not _silent:
        _silent.append(api.llama_log_callback(lambda level, text, user: None))
    api.llama_log_set(_silent[0], ctypes.c_void_p(0))
    api.llama_backend_init()
    return api


_silent: list[Any] = []
"""The callback that says nothing, kept for as long as the library may call it."""


def version() -> str:
    """Of the package; it carries one commit of llama.cpp."""
    from importlib.metadata import version

    return version("llama-cpp-python")


class LlamaCpp:
    """One GGUF file. Contexts are made for the sizes that are asked for, and freed by `close`."""

    def __init__(self, path: Path, name: str, threads: int) -> None:
        self.api = api = library()
        self.name, self.version, self.threads = name, version(), threads
        wanted = api.llama_model_default_params()
        wanted.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(bytes(path), wanted)
        if not self._model:
            raise BadInput(f"llama.cpp cannot load {path}", "leave it out of --against")
        self.vocabulary = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model)))
        self.size_bytes = int(api.llama_model_size(self._model))
        self.bits = 8.0 * self.size_bytes / int(api.llama_model_n_params(self._model))
        self._contexts: list[_Context] = []

    def prefill(self, tokens: I64) -> Repeat:
        context = self._context(1, len(tokens))
        batch = context.batch([tokens], 0, last_only=True)

        def repeat() -> None:
            context.clear()
            context.run(batch)

        return repeat

    def decode(self, tokens: I64, batch: int, depth: int) -> Repeat:
        context = self._context(batch, depth + DECODED)
        for sequence in range(batch):
            context.run(context.batch([tokens[:depth]], 0, last_only=True, first=sequence))
        steps = [context.batch([tokens[at : at + 1]] * batch, depth + at) for at in range(DECODED)]

        def repeat() -> None:
            for step in steps:
                context.run(step)
            for sequence in range(batch):
                context.rewind(sequence, depth)

        return repeat

    def predictions(self, part: I64) -> Iterator[tuple[int, F32]]:
        context = self._context(1, len(part))
        try:
            for at, end in chunks(len(part) - 1, self.vocabulary):
                yield at, context.run(context.batch([part[at:end]], at))
        finally:  # logits of a window are large: none is kept for the next
            if context in self._contexts:
                self._contexts.remove(context)
                self.api.llama_free(context.handle)

    def _context(self, sequences: int, tokens: int) -> _Context:
        self._contexts.append(_Context(self, sequences, tokens))
        return self._contexts[-1]

    def close(self) -> None:
        for context in self._contexts:
            self.api.llama_free(context.handle)
        self._contexts.clear()

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()
            self.api.llama_model_free(self._model)


class _Context:
    """Room for `sequences` of `tokens` each, and the batches that were made for it."""

    def __init__(self, engine: LlamaCpp, sequences: int, tokens: int) -> None:
        self.api, self.vocabulary = engine.api, engine.vocabulary
        wanted = self.api.llama_context_default_params()
        room = 256 * math.ceil(tokens / 256)  # its own padding
        wanted.n_ctx, wanted.n_seq_max, wanted.kv_unified = room * sequences, sequences, False
        wanted.n_batch, wanted.n_ubatch = max(room, 2048), PROMPT_ROWS
        wanted.n_threads = wanted.n_threads_batch = engine.threads
        wanted.no_perf = True
        self.handle = self.api.llama_init_from_model(engine._model, wanted)
        if not self.handle:
            raise Lacking(f"llama.cpp has no room for {sequences} sequences of {tokens} tokens", "ask for fewer")
        self.memory = self.api.llama_get_memory(self.handle)

    def batch(self, parts: Sequence[I64], position: int, last_only: bool = False, first: int = 0) -> Any:
        """Tokens of sequences `first`, `first` + 1, ..., all from one position on. Freed with its arrays."""
        api, count = self.api, sum(len(part) for part in parts)
        sequence = [number for number, part in enumerate(parts, first) for _ in part]
        place = [position + at for part in parts for at in range(len(part))]
        ids = (api.llama_seq_id * count)(*sequence)
        of = ctypes.POINTER(api.llama_seq_id)
        each = (of * count)(
            *(ctypes.cast(ctypes.byref(ids, at * ctypes.sizeof(api.llama_seq_id)), of) for at in range(count))
        )
        asked = [not last_only or at == count - 1 for at in range(count)]
        made = api.llama_batch(
            n_tokens=count,
            token=(api.llama_token * count)(*(int(token) for part in parts for token in part)),
            embd=None,
            pos=(api.llama_pos * count)(*place),
            n_seq_id=(ctypes.c_int32 * count)(*[1] * count),
            seq_id=each,
            logits=(ctypes.c_int8 * count)(*asked),
        )
        made.kept = (ids, sum(asked))
        return made

    def run(self, batch: Any) -> Any:
        """Logits float32 (tokens asked for, vocabulary): a view of the library's own memory."""
        if self.api.llama_decode(self.handle, batch):
            raise Lacking("llama.cpp could not run a batch", "ask for fewer sequences or a shorter context")
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.handle), (batch.kept[1], self.vocabulary))

    def clear(self) -> None:
        self.api.llama_memory_clear(self.memory, False)

    def rewind(self, sequence: int, length: int) -> None:
        self.api.llama_memory_seq_rm(self.memory, sequence, length, -1)
