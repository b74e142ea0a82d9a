"""A language model from a GGUF file: every quantised matrix keeps its codes, and so its exact value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadFile
from headway.core.pages import release
from headway.core.weight import F32, Weight
from headway.llm.families.base import Architecture
from headway.llm.families.family import Family
from headway.llm.families.table import family_of_gguf
from headway.llm.gguf.blocks import BLOCKS
from headway.llm.gguf.file import GGUFFile
from headway.llm.gguf.vocabulary import tokenizer_from_gguf
from headway.llm.language_model import LanguageModel
from headway.llm.stored_form import dense, grouped
from headway.llm.template import ChatTemplate

ROPE_FACTORS = "rope_freqs.weight"
IGNORED = (ROPE_FACTORS, "rope_factors_long.weight", "rope_factors_short.weight")


def load_gguf(path: Path, name: str = "") -> LanguageModel:
    """Raises `BadFile` where the file breaks a rule, `BadInput` for an architecture or tokenizer that is not read."""
    file = GGUFFile(path)
    family = family_of_gguf(file.header)
    arch = _with_rope_factors(file, family.from_gguf(file.header))
    names = family.gguf_tensor_names(arch)
    _check_names(file, names.values())
    order = _row_order(family, arch)
    weights = {
        site.name: _weight(file, names[f"{site.name}.weight"], (site.out_features, site.in_features), order(site.name))
        for site in arch.sites
    }
    vectors = {
        ours: _vector(file, names[ours], length, order(ours.removesuffix(".bias")))
        for ours, length in arch.vectors.items()
    }
    tokenizer = tokenizer_from_gguf(file.header)
    if tokenizer.size != arch.vocab:
        raise file.header.fault("tokenizer.ggml.tokens", f"has {tokenizer.size} entries, the model {arch.vocab} rows")
    template = file.header.text("tokenizer.chat_template", "")
    return LanguageModel(
        name=name or path.stem,
        architecture=arch,
        weights=weights,
        vectors=vectors,
        tokenizer=tokenizer,
        template=ChatTemplate(template, tokenizer.info.special) if template else None,
        source=path,
    )


def _with_rope_factors(file: GGUFFile, arch: Architecture) -> Architecture:
    """Llama 3.1's frequency factors come as a tensor."""
    if ROPE_FACTORS not in file.tensors:
        return arch
    factors = _vector(file, ROPE_FACTORS, arch.head_dim // 2, None)
    layers = []
    for layer in arch.layers:
        if layer.rope.scaling != "none":
            raise _wrong(file, ROPE_FACTORS, f"comes on top of {layer.rope.scaling} rope scaling: not supported")
        rope = replace(layer.rope, scaling="factors", factors=tuple(float(f) for f in factors))
        layers.append(replace(layer, rope=rope))
    return replace(arch, layers=tuple(layers))


def _check_names(file: GGUFFile, expected: Iterable[str]) -> None:
    """Every tensor of the file must have its place: one that is passed over would change the model's output."""
    wanted = set(expected)
    missing = sorted(wanted - set(file.tensors))
    if missing:
        raise BadFile(file.path, 0, f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
    for name in file.tensors:
        if name not in wanted and name not in IGNORED:
            raise _wrong(file, name, "is not part of this architecture")


def _row_order(family: Family, arch: Architecture) -> Callable[[str], npt.NDArray[np.int64] | None]:
    """Site -> the rows of the file in the order that the network wants, or None where they stand so already.

    Files of the families that rotate neighbouring rows hold (head, pair, half); the network has (head, half, pair).
    """

    def order(site: str) -> npt.NDArray[np.int64] | None:
        part = site.rpartition(".")[2]
        if not family.rotated_in_pairs or part not in ("q", "k") or ".attention." not in site:
            return None
        rows = arch.q_size if part == "q" else arch.kv_size
        return np.arange(rows).reshape(-1, arch.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)

    return order


def _weight(file: GGUFFile, name: str, shape: tuple[int, int], order: npt.NDArray[np.int64] | None) -> Weight:
    info = file.tensors[name]
    if info.shape != shape:
        raise _wrong(file, name, f"has shape {info.shape}, the architecture wants {shape}")
    if not file.quantised(name):
        words = file.words(name)
        return dense(words if order is None else words[order], BLOCKS[info.kind].name)
    parts = file.affine(name)
    if order is not None:
        parts = replace(parts, codes=parts.codes[order], scale=parts.scale[order], minimum=parts.minimum[order])
    made = grouped(parts)
    release(file.raw(name))  # the weight has its own copy
    return made


def _vector(file: GGUFFile, name: str, length: int, order: npt.NDArray[np.int64] | None) -> F32:
    values = file.values(name)
    if values.shape != (length,):
        raise _wrong(file, name, f"has shape {values.shape}, the architecture wants {(length,)}")
    return values if order is None else values[order]


def _wrong(file: GGUFFile, name: str, what: str) -> BadFile:
    return BadFile(file.path, file.tensors[name].start, f"tensor {name!r} {what}")
