"""No model folder gets code run, a file outside it opened, or anything but a one-line error out of the loader."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_folders import IGNORED, REFUSED
from tiny_models import TinyFolder

from headway.core.errors import BadInput
from headway.llm.load import load

_WATCHING: list[list[tuple[str, tuple[Any, ...]]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHING:
        _WATCHING[-1].append((event, arguments))


sys.addaudithook(_hook)


@pytest.fixture
def events(tmp_path: Path) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Every audit event while a folder is loaded; modules the loaders need are imported beforehand."""
    load(TinyFolder(tmp_path / "first").path)
    seen: list[tuple[str, tuple[Any, ...]]] = []
    yield seen


def watched_load(path: Path, seen: list[tuple[str, tuple[Any, ...]]]) -> Any:
    before = Path.cwd()
    os.chdir(path)  # where `import numpy` from a folder would find a numpy.py
    _WATCHING.append(seen)
    try:
        return load(path)
    finally:
        _WATCHING.pop()
        os.chdir(before)


def check_events(seen: list[tuple[str, tuple[Any, ...]]], folder: Path) -> None:
    """0 imports, 0 pickles, 0 processes, 0 code compiled or run, 0 opens outside the folder."""
    names = [event for event, _ in seen]
    for banned in ("import", "pickle.find_class", "os.system", "subprocess.Popen", "exec", "os.exec", "compile"):
        assert banned not in names, (banned, [a for e, a in seen if e == banned])
    assert not any(name.startswith("socket.") for name in names)
    inside = {entry.name for entry in os.scandir(folder)}
    for event, arguments in seen:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            opened = Path(os.fsdecode(arguments[0]))
            if opened.is_absolute():
                assert opened == folder or folder in opened.parents, opened
            else:  # beneath a folder's descriptor
                assert str(opened) in inside or not os.path.lexists(folder / opened), opened
    assert not (folder / "RAN").exists()


def made(tmp_path: Path, change: Any) -> TinyFolder:
    folder, outside = TinyFolder(tmp_path / "model"), tmp_path / "outside"
    outside.mkdir()
    (outside / "w.safetensors").write_bytes((folder.path / "model.safetensors").read_bytes())
    change(folder, outside)
    return folder


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_folder_is_refused_in_one_line(
    kind: str, tmp_path: Path, events: list[tuple[str, tuple[Any, ...]]]
) -> None:
    change, words = REFUSED[kind]
    folder = made(tmp_path, change)
    with pytest.raises(BadInput, match=words) as error:
        watched_load(folder.path, events)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800
    check_events(events, folder.path)


@pytest.mark.parametrize("kind", IGNORED)
def test_what_is_beside_a_model_changes_nothing(
    kind: str, tmp_path: Path, events: list[tuple[str, tuple[Any, ...]]]
) -> None:
    folder = made(tmp_path, IGNORED[kind])
    model = watched_load(folder.path, events)
    check_events(events, folder.path)
    sound = load(TinyFolder(tmp_path / "sound").path)
    assert model.fingerprint() == sound.fingerprint()
    assert np.array_equal(model.with_runtime("torch").logits([1, 2, 3]), sound.with_runtime("torch").logits([1, 2, 3]))


def test_there_are_forty_kinds() -> None:
    assert len(REFUSED) + len(IGNORED) >= 40


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_whose_file_is_cut_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = TinyFolder(tmp_path / "m")
    path = folder.path / name
    sound = path.read_bytes()
    header = int.from_bytes(sound[:8], "little") + 8
    ends = {*range(0, len(sound) - 1, 1 + len(sound) // 300)}
    if name == "model.safetensors":
        ends |= {*range(min(header, 600))}
    for end in sorted(ends):
        path.write_bytes(sound[:end])
        with pytest.raises(BadInput):
            load(folder.path)
    path.write_bytes(sound)
    load(folder.path)


def test_flipped_bits_in_a_header_let_nothing_else_out(tmp_path: Path) -> None:
    folder = TinyFolder(tmp_path / "m")
    random = np.random.default_rng(0)
    for name in ("model.safetensors", "config.json"):
        path = folder.path / name
        sound = path.read_bytes()
        for _ in range(300):
            data = bytearray(sound)
            data[int(random.integers(0, min(len(data), 2500)))] ^= 1 << int(random.integers(0, 8))
            path.write_bytes(data)
            try:
                load(folder.path)
            except BadInput as error:
                assert "\n" not in str(error)
        path.write_bytes(sound)
