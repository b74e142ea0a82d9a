"""The GGUF header reader reads what is right, refuses what is not, and costs no more than the file."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from raw_gguf import ARRAY, STRING, WRONG, Raw, array, key, sound, u64
from tiny_models import LLAMA, llama_tensors, write_gguf

from headway.core.errors import BadFile, BadInput
from headway.llm.gguf.file import GGUFFile
from headway.llm.gguf.header import Header
from headway.llm.gguf.model import load_gguf

CPU_S = 0.05


def read(data: bytes) -> Header:
    return Header(Path("model.gguf"), memoryview(data))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, "llama", LLAMA, llama_tensors(LLAMA))
    return path


def test_a_sound_file_gives_every_value_it_holds() -> None:
    header = read(bytes(sound(np.random.default_rng(0))))
    assert header.text("general.architecture") == "llama"
    assert header.integer("a.u8") == 7
    assert header.integer("a.i16") == -5
    assert header.real("a.f64") == 2.5
    assert header.flag("a.bool", False) is True
    assert header.numbers("a.numbers").tolist() == [0, 1, 2, 3, 4]
    assert all(text == "s" * len(text) for text in header.texts("a.strings"))
    assert {name: info.shape for name, info in header.tensors.items()} == {
        "one": (4, 8),
        "two": (32,),
        "three": (3,),
    }


def test_a_value_of_another_type_is_refused_where_it_lies() -> None:
    data = bytes(sound(np.random.default_rng(0)))
    header = read(data)
    for ask in (header.text, header.numbers, header.texts):
        with pytest.raises(BadFile) as error:
            ask("a.u8")
        assert data[error.value.offset] == 7
    with pytest.raises(BadFile, match=r"general\.architecture has the wrong type"):
        header.integer("general.architecture")
    with pytest.raises(BadFile, match="is missing"):
        header.integer("absent")
    assert header.integer("absent", 3) == 3


def test_it_agrees_with_the_gguf_package(tiny: Path) -> None:
    ours, theirs = GGUFFile(tiny), gguf.GGUFReader(tiny)
    assert set(ours.header) == {name for name in theirs.fields if not name.startswith("GGUF.")}
    for name in ours.header:
        value = theirs.fields[name].contents()
        kind = ours.header[name]
        if kind.count >= 0:
            found = ours.header.texts(name) if kind.kind == 8 else ours.header.numbers(name).tolist()
        else:
            found = ours.header.text(name) if kind.kind == 8 else ours.header.real(name)
        assert found == value
    for tensor in theirs.tensors:
        assert np.array_equal(ours.values(tensor.name), tensor.data.reshape(ours.tensors[tensor.name].shape))


@pytest.mark.parametrize("kind", WRONG)
def test_hand_made_wrong_files_are_refused_at_once(kind: str) -> None:
    """Only `BadFile` leaves, in bounded time and memory; 100 variants of each kind."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    for seed in range(100):
        data = WRONG[kind](np.random.default_rng(seed))
        start = time.process_time()
        with pytest.raises(BadFile) as error:
            read(data)
        slowest = max(slowest, time.process_time() - start)
        assert 0 <= error.value.offset <= len(data)
        assert "\n" not in str(error.value)
    assert slowest <= CPU_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 16 << 10


def test_a_file_cut_at_any_byte_is_refused(tiny: Path) -> None:
    data = tiny.read_bytes()
    whole = memoryview(data)
    for end in range(len(data)):
        if end > 8192 and end % 61:  # every byte of the first pages, then a sample of the data
            continue
        with pytest.raises(BadFile):
            Header(tiny, whole[:end])
    Header(tiny, whole)


def test_no_single_bit_flip_in_the_header_lets_anything_but_badfile_out(tiny: Path) -> None:
    data = bytearray(tiny.read_bytes())
    random = np.random.default_rng(1)
    for _ in range(2000):
        at, bit = int(random.integers(0, 8192)), 1 << int(random.integers(0, 8))
        data[at] ^= bit
        try:
            header = read(bytes(data))
            for info in header.tensors.values():
                assert info.start + info.nbytes <= len(data)
        except BadFile:
            pass
        data[at] ^= bit


def test_mutations_of_a_whole_model_let_only_one_line_errors_out_of_the_loader(tiny: Path, tmp_path: Path) -> None:
    """The conversion behind the header too: sizes, names and vocabularies that do not fit one another."""
    sound = tiny.read_bytes()
    random = np.random.default_rng(3)
    path = tmp_path / "m.gguf"
    for index in range(400):
        data = bytearray(sound)
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(24, 8192))
            if index % 2:
                data[at] ^= 1 << int(random.integers(0, 8))
            else:
                data[at] = int(random.integers(0, 256))
        path.write_bytes(data)
        try:
            _ = load_gguf(path).tokenizer.backend
        except BadInput as error:
            assert "\n" not in str(error)


def mutations(count: int) -> dict[str, object]:
    """Read mutated files: only `BadFile` leaves, each in 50 ms of CPU, all within 16 MB over what was resident.

    The reader is Python over a bounded view, so there is nothing for a memory sanitiser to see.
    """
    random = np.random.default_rng(2)
    kinds, refused, slowest, largest = list(WRONG), 0, 0.0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        data = bytearray(bytes(sound(random)) if index % 4 else WRONG[kinds[index // 4 % len(kinds)]](random))
        for _ in range(int(random.integers(1, 5))):
            at = int(random.integers(0, len(data)))
            choice = int(random.integers(0, 4))
            if choice == 0:
                data[at] ^= 1 << int(random.integers(0, 8))
            elif choice == 1:
                data[at : at + 8] = (0, 1, 1 << 31, 1 << 40, (1 << 64) - 1)[index % 5].to_bytes(8, "little")
            elif choice == 2:
                del data[at : at + int(random.integers(1, 9))]
            else:
                data[at:at] = random.bytes(int(random.integers(1, 9)))
        largest = max(largest, len(data))
        start = time.process_time()
        try:
            header = read(bytes(data))
            for name in header:
                _touch(header, name)
        except BadFile:
            refused += 1
        slowest = max(slowest, time.process_time() - start)
        assert slowest <= CPU_S, f"mutation {index}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown <= largest + (16 << 20)
    return {
        "mutations": count,
        "refused": refused,
        "slowest_ms": 1e3 * slowest,
        "rss_grown_mb": grown / 1e6,
        "largest_file_kb": largest / 1e3,
    }


def test_twenty_thousand_mutations_of_sound_and_wrong_files(figures: Callable[..., None]) -> None:
    figures(**mutations(20_000))


@pytest.mark.nightly
def test_a_million_mutations_of_sound_and_wrong_files(figures: Callable[..., None]) -> None:
    figures(**mutations(1_000_000))


def _touch(header: Header, name: str) -> None:
    for ask in (header.texts, header.numbers, header.text, header.real, header.integer):
        try:
            ask(name)
        except BadFile:
            continue


def test_opening_something_else_names_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(BadInput, match="not a regular file"):
        GGUFFile(tmp_path / "pipe.gguf")
    with pytest.raises(BadInput, match="not a regular file"):
        GGUFFile(tmp_path)
    with pytest.raises(BadInput, match="No such file"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(BadFile, match="the magic needs 4 bytes"):
        GGUFFile(tmp_path / "empty.gguf")


def test_a_string_array_of_many_elements_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """A 16 MB header of empty strings: nothing is made of it until it is asked for."""
    count = 1 << 21
    data = bytes(Raw(keys=[key("k", ARRAY, array(STRING, count, u64(0) * count))]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    header = read(data)
    assert header["k"].count == count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 16 << 10
