"""An artifact: a folder with a model's weights, the recipe that made it, the evidence, a card, and their digests.

weights/        what `Model.save` wrote
recipe.toml     the systems and their settings
evidence.json   every sample
README.md       the model card, for people
headway.json    the manifest: who reads the weights, and the sha256 of every file above and of itself
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headway.core.decode import check_schema, decode
from headway.core.errors import BadFile, BadInput, HeadwayError, Lacking
from headway.core.evidence import Evidence
from headway.core.files import atomic_folder, explained, open_beneath, read_bytes, tree_files, write_file
from headway.core.jsontext import canonical_json, json_text, parse_json, plain
from headway.core.model import Model

SCHEMA = 1
MANIFEST = "headway.json"
WEIGHTS = "weights"
RECIPE = "recipe.toml"
EVIDENCE = "evidence.json"
CARD = "README.md"

PART_BYTES = 8 << 20
_MOST_BYTES = 16 << 20
_REMAKE = "write the artifact again, or fetch it again if it was copied"


@dataclass(frozen=True)
class FileRecord:
    """What the manifest knows of one file."""

    sha256: str
    bytes: int
    parts: tuple[str, ...] = ()
    """sha256 of each `PART_BYTES` of a file that is longer: processors can check them side by side."""


@dataclass(frozen=True)
class Manifest:
    """The content of headway.json."""

    runtime: str
    """Which runtime reads `weights/`: `language` or `module`. A name in a fixed table, never code."""
    name: str
    task: str
    fingerprint: str
    """`Model.fingerprint()` of the model that was saved."""
    headway: str
    """Version that wrote it."""
    made_at: str
    files: Mapping[str, FileRecord]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """`Model.extra()`: settings that policies plugged in."""
    schema: int = SCHEMA
    digest: str = ""
    """sha256 of this manifest's canonical JSON without this field."""

    def sealed(self) -> Manifest:
        """The same manifest with its digest filled in."""
        return replace(self, digest=_digest(plain(self)))

    @property
    def weights_bytes(self) -> int:
        return sum(record.bytes for name, record in self.files.items() if name.startswith(f"{WEIGHTS}/"))


def write_artifact(
    folder: str | Path,
    model: Model,
    recipe_toml: str,
    evidence: Evidence,
    card: str | None = None,
    *,
    runtime: str | None = None,
    replace: bool = True,
) -> Manifest:
    """Write an artifact; afterwards, and after any crash, `folder` is the whole new one or what it was before.

    With `replace` an existing artifact is replaced; nothing else ever is (`check_place`). `runtime` follows from the
    model's task when not given. Raises `Lacking` when the disk is full.
    """
    from headway.core.version import __version__

    folder = Path(os.path.realpath(folder))  # a link stays one
    _may_write(folder, model, replace)
    with atomic_folder(folder, replace=replace) as new:
        weights = new / WEIGHTS
        weights.mkdir()
        model.save(weights)
        write_file(new / RECIPE, recipe_toml.encode())
        write_file(new / EVIDENCE, json_text(evidence.to_json()).encode())
        write_file(new / CARD, (model_card(model, recipe_toml, evidence) if card is None else card).encode())
        manifest = Manifest(
            runtime or ("language" if model.task == "language" else "module"),
            model.name,
            model.task,
            model.fingerprint(),
            __version__,
            datetime.now(UTC).isoformat(timespec="seconds"),
            {name: _record(new / name) for name in tree_files(new)},
            plain(model.extra()),
        ).sealed()
        write_file(new / MANIFEST, json_text(manifest).encode())
    return manifest


def check_place(folder: Path) -> None:
    """Raise `BadInput` unless an artifact may be written there: at a new name, an empty folder, or an artifact's.

    Nothing that is no artifact's is ever replaced, and no artifact is written into another.
    """
    mend = "choose another folder"
    outer = next((parent for parent in folder.absolute().parents if (parent / MANIFEST).is_file()), None)
    if outer is not None:
        raise BadInput(f"{folder} lies in the artifact {outer}", mend)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder", mend)
    names = {path.name for path in folder.iterdir()}
    if names and MANIFEST not in names:
        raise BadInput(f"{folder} exists and is no artifact", mend)
    if other := sorted(names - {WEIGHTS, RECIPE, EVIDENCE, CARD, MANIFEST}):
        raise BadInput(f"{folder} holds more than an artifact: {', '.join(other[:3])}", f"move that, or {mend}")


def _may_write(folder: Path, model: Model, replace: bool) -> None:
    check_place(folder)
    if not replace and folder.exists():
        if any(folder.iterdir()):
            raise BadInput(f"{folder} exists already", "remove it or choose another folder")
        folder.rmdir()
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free, wanted = shutil.disk_usage(parent).free, model.size_bytes()
    if free < wanted:
        raise Lacking(
            f"{folder}: {wanted} bytes are needed, {free} are free", "free disk space or choose another folder"
        )


def read_manifest(folder: str | Path, *, verify: bool = True) -> Manifest:
    """The manifest of an artifact, every file compared with its digest first.

    Raises `BadFile` for a file that is missing, changed or not listed, `BadInput` for a manifest of a newer schema or
    with a field this version does not know. `verify=False` reads the manifest alone.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(f"{folder} is no artifact: it has no {MANIFEST}", "give a folder that headway wrote")
    document = parse_json(read_bytes(path, limit=_MOST_BYTES), path)
    try:
        check_schema(document, SCHEMA, str(path))
        manifest = decode(Manifest, document, str(path))
    except BadInput as error:
        raise _damaged(document, path) or error from None
    if damage := _damaged(document, path):
        raise damage
    if verify:
        _verify(folder, manifest)
    return manifest


def _damaged(document: Any, path: Path) -> HeadwayError | None:
    """A bit flip in the name or the value of a field is damage, whatever other rule it seems to break."""
    if not isinstance(document, dict) or document.get("digest") != _digest(document):
        return BadFile(path, 0, "the manifest was changed after it was written", _REMAKE)
    return None


def _digest(document: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(canonical_json(rest)).hexdigest()


def _verify(folder: Path, manifest: Manifest) -> None:
    for name in (EVIDENCE, RECIPE, CARD):
        if name not in manifest.files:
            raise BadFile(folder / MANIFEST, 0, f"{name} is not listed", _REMAKE)
    for name in tree_files(folder / WEIGHTS):
        if f"{WEIGHTS}/{name}" not in manifest.files:
            raise BadFile(folder / WEIGHTS / name, 0, "the file is not listed in the manifest", "remove it")
    for name, record in manifest.files.items():
        _compare(folder, name, record)


def _record(path: Path) -> FileRecord:
    """Digests of a file, all in one pass."""
    whole = hashlib.sha256()
    parts = []
    with explained(path), path.open("rb") as file:
        while part := file.read(PART_BYTES):
            whole.update(part)
            parts.append(hashlib.sha256(part).hexdigest())
    return FileRecord(whole.hexdigest(), path.stat().st_size, tuple(parts) if len(parts) > 1 else ())


def _compare(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    if not os.path.lexists(path):
        raise BadFile(path, 0, "the file is missing", _REMAKE)
    descriptor = open_beneath(folder, name)
    try:
        size = os.fstat(descriptor).st_size
        if size != record.bytes:
            rule = f"{record.bytes} bytes were written, {size} are there"
            raise BadFile(path, min(size, record.bytes), rule, _REMAKE)
        expected = record.parts or (record.sha256,)
        length = PART_BYTES if record.parts else size
        with explained(path), ThreadPoolExecutor(min(len(expected), len(os.sched_getaffinity(0)))) as pool:
            found = pool.map(lambda part: _digest_part(descriptor, part * length, length), range(len(expected)))
            for part, (known, digest) in enumerate(zip(expected, found, strict=True)):
                if known != digest or len(expected) * length < size:
                    raise BadFile(path, part * length, "the content does not match its digest", _REMAKE)
    finally:
        os.close(descriptor)


def _digest_part(descriptor: int, start: int, length: int) -> str:
    """sha256 of a stretch of an open file; threads share the descriptor, not its position."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(length, 1 << 18)))  # small enough to stay in cache between reading and hashing
    end = start + length
    while start < end and (count := os.preadv(descriptor, [buffer[: end - start]], start)):
        digest.update(buffer[:count])
        start += count
    return digest.hexdigest()


def model_card(model: Model, recipe_toml: str, evidence: Evidence) -> str:
    """A card in Markdown: what it is, how it was made, what was measured and how to use it."""
    source = evidence.model.get("name", model.name)
    versions = ", ".join(f"{name} {version}" for name, version in evidence.versions.items())
    notes = "".join(f"\n- {note}" for note in evidence.notes)
    return f"""# {model.name}

A model ({model.task}) made by Headway from `{source}` with the recipe below.
The terms of the original model hold for it too.

## Use

```python
import headway

model = headway.load("path/to/this/folder")
```

## Recipe

```toml
{recipe_toml.strip()}
```

## Measured

```
{evidence.table()}
```
{notes and f"{chr(10)}## Notes{chr(10)}{notes}{chr(10)}"}
Weights: {model.size_bytes()} bytes. Every sample is in `evidence.json`. Versions: {versions}.
"""
