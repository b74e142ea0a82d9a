"""Files cut at every byte and with single bits flipped: refused, or what they were; never another exception.

The short version takes a sample of the positions, the nightly one all of them.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from artifacts import RECIPE, SmallModel, evidence

from headway.core.artifact import read_manifest, write_artifact
from headway.core.errors import BadFile, BadInput, HeadwayError
from headway.core.evidence import Evidence
from headway.core.jsontext import json_text
from headway.core.ledger import Ledger
from headway.core.recipe import Recipe

SHORT, LONG = 150, 10_000
WEIGHTS = "weights/model.safetensors"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "out", SmallModel(1.0, 600), RECIPE, evidence())
    return tmp_path / "out"


@contextmanager
def content(path: Path, data: bytes) -> Iterator[None]:
    whole = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


def flips(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` copies, each with another bit flipped (all of them when there are fewer)."""
    bits = list(range(8 * len(data)))
    random.Random(seed).shuffle(bits)
    for bit in bits[:count]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def cuts(data: bytes, count: int) -> Iterator[bytes]:
    """`count` prefixes, evenly spread (all of them when there are fewer)."""
    step = max(1, len(data) // count)
    return (data[:length] for length in range(0, len(data), step))


def refused(read: Callable[[], object]) -> HeadwayError:
    with pytest.raises(BadInput) as caught:
        read()
    assert caught.value.exit_code == 2 and caught.value.mend and "\n" not in str(caught.value)
    return caught.value


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_weights(artifact: Path, count: int) -> None:
    data = (artifact / WEIGHTS).read_bytes()
    for flipped in flips(data, count, seed=0):
        with content(artifact / WEIGHTS, flipped):
            error = refused(lambda: read_manifest(artifact))
            assert isinstance(error, BadFile) and "does not match its digest" in error.rule


def test_every_flip_in_weights_is_caught(artifact: Path) -> None:
    flip_weights(artifact, SHORT)


@pytest.mark.nightly
def test_ten_thousand_flips_in_weights_are_caught(artifact: Path) -> None:
    flip_weights(artifact, LONG)


def cut_all(artifact: Path, count: int) -> None:
    before = tree(artifact.parent)
    for name in (WEIGHTS, "headway.json", "evidence.json", "recipe.toml"):
        for prefix in cuts((artifact / name).read_bytes().rstrip(), count):
            with content(artifact / name, prefix):
                refused(lambda: read_manifest(artifact))
    assert tree(artifact.parent) == before, "nothing was written"


def test_every_cut_is_refused_and_nothing_written(artifact: Path) -> None:
    cut_all(artifact, SHORT // 3)


@pytest.mark.nightly
def test_a_cut_at_every_byte_is_refused(artifact: Path) -> None:
    cut_all(artifact, LONG)


def flip_manifest(artifact: Path, count: int) -> None:
    path = artifact / "headway.json"
    whole = read_manifest(artifact)
    for flipped in flips(path.read_bytes(), count, seed=1):
        with content(path, flipped):
            try:
                assert read_manifest(artifact) == whole, "only white space may change unnoticed"
            except BadInput as error:
                assert error.mend


def test_a_flipped_manifest_is_refused_or_says_the_same(artifact: Path) -> None:
    flip_manifest(artifact, SHORT)


@pytest.mark.nightly
def test_every_flip_of_a_manifest_is_refused_or_says_the_same(artifact: Path) -> None:
    flip_manifest(artifact, LONG)


def damage_texts(tmp_path: Path, count: int) -> None:
    """Loose evidence and recipes have no digest: they parse, or are refused by name."""
    path = tmp_path / "evidence.json"
    text = json_text(evidence().to_json()).encode()
    for prefix in cuts(text.rstrip(), count):
        path.write_bytes(prefix)
        refused(lambda: Evidence.load(path))
    for flipped in flips(text, count, seed=2):
        path.write_bytes(flipped)
        try:
            Evidence.load(path).table()
        except BadInput as error:
            assert error.mend
    recipe = tmp_path / "recipe.toml"
    for damaged in (*cuts(RECIPE.encode(), count), *flips(RECIPE.encode(), count, seed=3)):
        recipe.write_bytes(damaged)
        try:
            Recipe.read(recipe)
        except BadInput as error:
            assert error.mend


def test_damaged_texts_parse_or_are_refused(tmp_path: Path) -> None:
    damage_texts(tmp_path, SHORT)


@pytest.mark.nightly
def test_all_damage_to_texts_is_survived(tmp_path: Path) -> None:
    damage_texts(tmp_path, LONG)


def damage_ledger(tmp_path: Path, count: int) -> None:
    """A damaged ledger gives exactly what was written, or says that it is damaged."""
    path = tmp_path / "ledger.sqlite3"
    for seed in range(5):
        Ledger(path).append(evidence(seed))
    written = [json.dumps(found.to_json()) for found in Ledger(path).all()]
    data = path.read_bytes()
    # Positions that hold something: SQLite leaves most of a fresh page empty.
    full = [position for position, byte in enumerate(data) if byte]
    generator = random.Random(4)
    changed = 0
    for _ in range(count):
        flipped = bytearray(data)
        flipped[generator.choice(full)] ^= 1 << generator.randrange(8)
        for damaged in (bytes(flipped), data[: generator.randrange(1, len(data))]):
            for left in tmp_path.iterdir():
                left.unlink()
            path.write_bytes(damaged)
            try:
                found = [json.dumps(piece.to_json()) for piece in Ledger(path).all()]
            except HeadwayError as error:
                assert error.mend and "\n" not in str(error)
                changed += 1
                continue
            assert set(found) <= set(written), "what comes back is what was written"
    assert changed > count / 4


def test_a_ledger_of_a_version_that_never_was_is_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = -1000")
    with pytest.raises(BadFile, match="version -1000"):
        Ledger(path)


def test_a_damaged_ledger_never_gives_back_something_else(tmp_path: Path) -> None:
    damage_ledger(tmp_path, SHORT // 3)


@pytest.mark.nightly
def test_a_ledger_damaged_thousands_of_times(tmp_path: Path) -> None:
    damage_ledger(tmp_path, LONG // 5)


def test_hostile_manifests_are_refused_quickly(artifact: Path) -> None:
    """Deep nesting, huge numbers, duplicate and enormous keys."""
    path = artifact / "headway.json"
    whole = path.read_bytes()
    for data in (
        b"[" * 100_000,
        b'{"schema": ' + b"9" * 100_000 + b"}",
        b'{"schema": 1, "' + b"x" * 100_000 + b'": 1}',
        b'{"schema": 1e999}',
        b'{"schema": NaN}',
        b"\xff\xfe" + whole,
        b"",
        b"null",
    ):
        with content(path, data):
            refused(lambda: read_manifest(artifact))
    with content(path, b" " * ((16 << 20) + 1)):
        refused(lambda: read_manifest(artifact))
    shutil.rmtree(artifact / "weights")
    refused(lambda: read_manifest(artifact))
