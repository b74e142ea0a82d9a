"""A language model from a Hugging Face folder: config.json, safetensors, tokenizer.json. Data only, no code."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadFile, BadInput
from headway.core.weight import F32, Weight
from headway.llm.families.base import Architecture
from headway.llm.families.config import CODE_KEYS, Config
from headway.llm.families.table import family_of_config
from headway.llm.folder import Folder
from headway.llm.language_model import LanguageModel
from headway.llm.safetensors_file import SafetensorsFile
from headway.llm.stored_form import EXPONENTS, all_finite, dense, to_float32
from headway.llm.template import ChatTemplate
from headway.llm.tokenizer_json import tokenizer_from_json

SMALL = 16 << 20
TOKENIZER_BYTES = 256 << 20
MAX_SHARDS = 4096

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
CONVERT = "convert to safetensors: load it where you trust it and call save_pretrained(folder)"

IGNORED_ENDS = ("rotary_emb.inv_freq",)
IGNORED_PARTS = ("vision_tower.", "multi_modal_projector.", "embed_vision.")
"""Tensors of a checkpoint that are not the language model's, or that it computes itself."""

LANGUAGE_PARTS = (("", ""), ("model.", "model.language_model."), ("", "language_model."))
"""Where the language model stands in a checkpoint: (what our names begin with, what stands there instead)."""

_LOG = logging.getLogger(__name__)


def load_folder(path: Path, name: str = "") -> LanguageModel:
    """Raises `BadInput` or `BadFile`, one line each, for anything that is not a plain model of a known family."""
    folder = Folder(path)
    if not folder.has("config.json"):
        raise BadInput(f"{path} has no config.json", "give a Hugging Face folder, an artifact or a .gguf file")
    config = Config(folder.json("config.json", SMALL), str(path / "config.json"))
    for key in CODE_KEYS:
        if key in config:
            _LOG.warning("%s: %s is ignored: no code of a model folder is ever run", path, key)
    if "quantization_config" in config:
        raise config.wrong("quantization_config", "is not supported", "give the unquantised checkpoint or a GGUF file")
    family = family_of_config(config)
    arch = family.from_config(config)
    ends = Config(folder.json_if_any("generation_config.json", SMALL), str(path / "generation_config.json"))
    arch = replace(arch, eos=tuple(dict.fromkeys((*arch.eos, *ends.ids("eos_token_id")))))
    checkpoint = Checkpoint(folder)
    names = _located(checkpoint, family.checkpoint_names(arch))
    checkpoint.check_names(names.values(), "lm_head.weight" if arch.tied else "")
    weights = {
        site.name: checkpoint.matrix(names[f"{site.name}.weight"], (site.out_features, site.in_features))
        for site in arch.sites
    }
    vectors = {ours: checkpoint.vector(names[ours], length) for ours, length in arch.vectors.items()}
    if family.norm_offset:
        vectors = {
            ours: values + np.float32(family.norm_offset) if ours.endswith("norm.weight") else values
            for ours, values in vectors.items()
        }
    return _assembled(folder, name or path.resolve().name, arch, weights, vectors)


def _assembled(
    folder: Folder, name: str, arch: Architecture, weights: Mapping[str, Weight], vectors: Mapping[str, F32]
) -> LanguageModel:
    if not folder.has("tokenizer.json"):
        raise BadInput(f"{folder.path} has no tokenizer.json", "save it with transformers' fast tokenizer")
    settings = folder.json_if_any("tokenizer_config.json", SMALL)
    tokenizer = tokenizer_from_json(
        folder.text("tokenizer.json", TOKENIZER_BYTES), settings, str(folder.path / "tokenizer.json")
    )
    template = _template(folder, settings)
    return LanguageModel(
        name=name,
        architecture=arch,
        weights=weights,
        vectors=vectors,
        tokenizer=tokenizer,
        template=ChatTemplate(template, tokenizer.info.special) if template else None,
    )


def _template(folder: Folder, settings: Mapping[str, Any]) -> str:
    """The chat template, from either place that transformers writes it to; of several, the one named `default`."""
    if folder.has("chat_template.jinja"):
        return folder.text("chat_template.jinja", SMALL)
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise BadInput(f"{folder.path}: chat_template is not a text", "correct tokenizer_config.json")
    return found or ""


class Checkpoint:
    """The tensors of a folder's safetensors files, by name."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._where: dict[str, SafetensorsFile] = {}
        if folder.has(SINGLE):
            self._add(folder.tensors(SINGLE))
        elif folder.has(INDEX):
            self._add_shards()
        else:
            raise BadInput(f"{folder.path} has no {SINGLE}{_pickled(folder.path)}", CONVERT)

    def _add(self, file: SafetensorsFile) -> None:
        for name in file:
            if name in self._where:
                raise BadFile(file.path, file[name].start, f"tensor {name!r} is in another shard too")
            self._where[name] = file

    def _add_shards(self) -> None:
        index = self.folder.path / INDEX
        mapping = self.folder.json(INDEX, SMALL).get("weight_map")
        if not isinstance(mapping, dict) or not all(isinstance(shard, str) for shard in mapping.values()):
            raise BadFile(index, 0, "weight_map is not an object of file names")
        shards = sorted(set(mapping.values()))
        if len(shards) > MAX_SHARDS:
            raise BadFile(index, 0, f"{len(shards)} shards, the limit is {MAX_SHARDS}")
        for shard in shards:
            if shard.endswith(PICKLED):
                raise BadInput(f"{index} names {shard!r}, a pickle, which can run code", CONVERT)
            if not shard.endswith(".safetensors"):
                raise BadFile(index, 0, f"weight_map names {shard[:80]!r}, no safetensors file")
            try:
                self._add(self.folder.tensors(shard))
            except BadInput as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                mend = "download or copy the whole model again"
                raise BadInput(f"{index} names {shard!r}, which is not there", mend) from None
        for name, shard in mapping.items():
            if name not in self._where or self._where[name].path.name != Path(shard).name:
                raise BadFile(index, 0, f"tensor {name[:80]!r} is not in {shard[:80]!r}")

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def check_names(self, expected: Iterable[str], ignored: str) -> None:
        """Every tensor must have its place: one that is passed over would change the model's output."""
        wanted = set(expected)
        missing = sorted(wanted - set(self._where))
        if missing:
            raise BadInput(f"{self.folder.path}: tensor {missing[0]!r} is missing", "export the whole model again")
        for name in self._where:
            known = name in wanted or name == ignored or name.endswith((*IGNORED_ENDS, *([ignored] if ignored else [])))
            if not known and not any(part in name for part in IGNORED_PARTS):
                raise BadInput(
                    f"{self.folder.path}: tensor {name!r} is not part of this architecture",
                    "export the plain, unquantised model without adapters",
                )

    def _words(self, name: str, shape: tuple[int, ...]) -> tuple[npt.NDArray[Any], str]:
        file = self._where[name]
        stored = file[name]
        if stored.shape != shape:
            raise BadFile(
                file.path, stored.start, f"tensor {name!r} has shape {stored.shape}, the configuration wants {shape}"
            )
        if stored.dtype not in EXPONENTS:
            raise BadFile(
                file.path, stored.start, f"tensor {name!r} is {stored.dtype}, not F32, F16 or BF16", "export it as BF16"
            )
        words = file.array(name)
        if not all_finite(words, stored.dtype):
            raise BadFile(
                file.path, stored.start, f"tensor {name!r} holds NaN or infinite values", "repair the checkpoint"
            )
        return words, stored.dtype

    def matrix(self, name: str, shape: tuple[int, int]) -> Weight:
        """A view of the file in the type it is stored in."""
        return dense(*self._words(name, shape))

    def vector(self, name: str, length: int) -> F32:
        return to_float32(*self._words(name, (length,)))


def _located(checkpoint: Checkpoint, names: dict[str, str]) -> dict[str, str]:
    """The names with the prefix that this checkpoint gives its language model."""
    for begin, instead in LANGUAGE_PARTS:
        moved = {
            ours: instead + theirs.removeprefix(begin) if theirs.startswith(begin) else theirs
            for ours, theirs in names.items()
        }
        if moved["final_norm.weight"] in checkpoint:
            return moved
    return names


def _pickled(path: Path) -> str:
    """A few words on the pickle in a folder without safetensors; only the first entries are looked at."""
    with os.scandir(path) as entries:
        for entry in islice(entries, 1000):
            if entry.name.endswith(PICKLED):
                return f", only {entry.name!r}, a pickle, which can run code"
    return ""
