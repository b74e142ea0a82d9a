"""Old checkpoints are read as data: equal to torch's reader, nothing imported, every broken file one error."""

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import BadFile
from headway.vision.legacy_pth import read_legacy_pth


def written(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def state() -> OrderedDict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32)
    return OrderedDict(
        plain=base.reshape(2, 3, 4),
        turned=base.reshape(4, 6).T,
        part=base[5:9],
        half=torch.tensor([1.5, -2.0], dtype=torch.float16),
        count=torch.tensor(7),
        empty=torch.zeros(0, 3),
    )


def test_tensors_equal_those_torch_saved(tmp_path: Path) -> None:
    (tmp_path / "old.pth").write_bytes(written(state()))
    read = read_legacy_pth(tmp_path / "old.pth")
    assert set(read) == set(state())
    for name, tensor in state().items():
        assert read[name].dtype == tensor.numpy().dtype
        assert torch.equal(torch.from_numpy(read[name]), tensor), name


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return __import__, ("this_module_must_not_be_imported",)

    (tmp_path / "bomb.pth").write_bytes(written(OrderedDict(a=torch.ones(1), b=Bomb())))
    seen: list[str] = []
    sys.addaudithook(lambda event, args: seen.append(event) if event in ("pickle.find_class", "import") else None)
    seen.clear()
    assert set(read_legacy_pth(tmp_path / "bomb.pth")) == {"a"}
    assert not [event for event in seen if event == "pickle.find_class"]
    assert "this_module_must_not_be_imported" not in sys.modules


@pytest.mark.parametrize("made", [[1, 2], {"a": 1}, torch.ones(2)])
def test_what_is_no_dictionary_of_tensors_holds_none(tmp_path: Path, made: object) -> None:
    (tmp_path / "x.pth").write_bytes(written(made))
    if isinstance(made, dict):
        assert read_legacy_pth(tmp_path / "x.pth") == {}
    else:
        with pytest.raises(BadFile):
            read_legacy_pth(tmp_path / "x.pth")


GOOD = written(state())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_leave_only_as_bad_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    mutated = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    del mutated[data.draw(st.integers(0, len(mutated))) :]
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    path.write_bytes(mutated)
    try:
        read_legacy_pth(path)
    except BadFile as error:
        assert "\n" not in str(error)
