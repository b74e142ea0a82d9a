"""A language model as files: `language.safetensors` for every value, `language.json` for the rest, `tokenizer.json`.

Names in `language.safetensors`: `site:SITE:ARRAY` for the arrays of a site's weight, `vector:NAME` for vectors.
`language.json` holds the digest of everything, so that a changed bit is found when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.core.errors import BadFile, BadInput, Lacking
from headway.core.files import explained, sha256_of, write_file
from headway.core.jsontext import canonical_json, json_text
from headway.core.pages import release
from headway.llm.digests import model_digest
from headway.llm.families.base import Architecture
from headway.llm.folder import Folder
from headway.llm.language_model import LanguageModel
from headway.llm.safetensors_file import SafetensorsFile
from headway.llm.template import ChatTemplate
from headway.llm.tokenizer import Tokenizer, TokenizerInfo
from headway.llm.tokenizer_json import backend_from
from headway.llm.weights.base import load_weight

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SCHEMA = 1
VALUES, DESCRIPTION, TOKENIZER = "language.safetensors", "language.json", "tokenizer.json"
SMALL = 64 << 20
TOKENIZER_BYTES = 256 << 20


def save(model: LanguageModel, folder: Path) -> None:
    """Write `model` into an existing empty folder. Raises `Lacking` for a disk that is full or fails."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    values: dict[str, np.ndarray[Any, Any]] = {}
    weights = {}
    for site in model.sites():
        weight = model.weight(site.name)
        arrays = weight.tensors()
        weights[site.name] = {"form": weight.form, "meta": dict(weight.meta()), "arrays": sorted(arrays)}
        for name, array in arrays.items():
            values[f"site:{site.name}:{name}"] = np.ascontiguousarray(array)
    for name, vector in model.vectors.items():
        values[f"vector:{name}"] = np.ascontiguousarray(vector)
    tokenizer = model.tokenizer.backend.to_str().encode()
    description = {
        "schema": SCHEMA,
        "name": model.name,
        "architecture": model.architecture.to_json(),
        "weights": weights,
        "tokenizer": {**_info_json(model.tokenizer.info), "sha256": sha256_of(tokenizer)},
        "kv": model.kv,
        **({} if model.scheduler is None else {"scheduler": [model.scheduler[0], dict(model.scheduler[1])]}),
        "template": None if model.template is None else model.template.source,
    }
    held = {site.name: model.weight(site.name) for site in model.sites()}
    description["content"] = _content(description, model_digest(model.architecture, held, model.vectors))
    try:
        with explained(folder / VALUES):
            save_file(values, folder / VALUES)
    except SafetensorError as error:
        raise Lacking(f"{folder / VALUES}: {error}", "free disk space there or choose another folder") from error
    write_file(folder / TOKENIZER, tokenizer)
    write_file(folder / DESCRIPTION, json_text(description).encode())


def load_saved(path: Path) -> LanguageModel:
    """The model that `save` wrote, bit for bit. Raises `BadFile` when anything of it has changed since."""
    folder = Folder(Path(path))
    where = folder.path / DESCRIPTION
    description = folder.json(DESCRIPTION, SMALL)
    schema = description.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise BadFile(where, 0, "not the description of a language model")
    if schema > SCHEMA:
        raise BadInput(f"{where} has schema {schema}; this version reads up to {SCHEMA}", "update headway")
    file = folder.tensors(VALUES)
    try:
        arch = Architecture.from_json(description["architecture"])
        weights = {
            site: load_weight(entry["form"], _arrays(file, f"site:{site}:", entry["arrays"]), entry["meta"])
            for site, entry in description["weights"].items()
        }
        vectors = {name: file.array(f"vector:{name}") for name in arch.vectors}
        stored = description["tokenizer"]
        info = _info(stored)
        digest = str(stored["sha256"])
        name, template, content = str(description["name"]), description["template"], description["content"]
        kv = description.get("kv", "f16")
        system = description.get("scheduler")
        scheduler = None if system is None else (str(system[0]), dict(system[1]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadFile(where, 0, f"does not describe {VALUES} ({error!r:.200})") from None
    unsigned = {key: value for key, value in description.items() if key != "content"}
    if _content(unsigned, model_digest(arch, weights, vectors)) != content:
        raise BadFile(folder.path / VALUES, 0, f"the values are not those whose digest {DESCRIPTION} holds")
    for name_of in file:  # the digest has read everything
        release(file.array(name_of))
    return LanguageModel(
        name=name,
        architecture=arch,
        weights=weights,
        vectors=vectors,
        tokenizer=Tokenizer(info, lambda: _tokenizer(folder, digest)),
        template=None if template is None else ChatTemplate(template, info.special),
        kv=kv,
        scheduler=scheduler,
    )


def _content(description: Mapping[str, Any], fingerprint: str) -> str:
    """One digest over the values and over what the description says of them."""
    return sha256_of(canonical_json(description), fingerprint)


def _arrays(file: SafetensorsFile, prefix: str, names: list[str]) -> dict[str, Any]:
    return {name: file.array(prefix + name) for name in names}


def _info_json(info: TokenizerInfo) -> dict[str, Any]:
    return {
        "size": info.size,
        "spelling": info.spelling,
        "start": list(info.start),
        "space_prefix": info.space_prefix,
        "special": dict(info.special),
    }


def _info(stored: Mapping[str, Any]) -> TokenizerInfo:
    return TokenizerInfo(
        size=int(stored["size"]),
        spelling=stored["spelling"],
        start=tuple(stored["start"]),
        space_prefix=bool(stored["space_prefix"]),
        special=dict(stored["special"]),
    )


def _tokenizer(folder: Folder, digest: str) -> Backend:
    data = folder.read(TOKENIZER, TOKENIZER_BYTES)
    if sha256_of(data) != digest:
        raise BadFile(folder.path / TOKENIZER, 0, f"the file is not the one whose digest {DESCRIPTION} holds")
    return backend_from(data.decode(), str(folder.path / TOKENIZER))
