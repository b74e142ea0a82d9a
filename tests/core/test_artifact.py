"""Artifacts come back as they were written, or are refused with a reason."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from artifacts import RECIPE, SmallModel, evidence, value_in

from headway.core import artifact
from headway.core.artifact import Manifest, check_place, read_manifest, write_artifact
from headway.core.errors import BadFile, BadInput, Lacking
from headway.core.evidence import Evidence
from headway.core.recipe import Recipe


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "out", SmallModel(1.0), RECIPE, evidence(), None)
    return tmp_path / "out"


def edit(folder: Path, **changes: object) -> None:
    """Change the manifest as a careful forger would: with a fitting digest."""
    path = folder / "headway.json"
    document = {**json.loads(path.read_text()), **changes}
    document["digest"] = artifact._digest(document)
    path.write_text(json.dumps(document))


def test_what_was_written_is_read_back(written: Path) -> None:
    manifest = read_manifest(written)
    assert isinstance(manifest, Manifest)
    assert (manifest.runtime, manifest.task, manifest.name) == ("language", "language", "small-1")
    assert manifest.fingerprint == SmallModel(1.0).fingerprint()
    assert manifest.extra == {"kv": {"pages": 16}}
    assert set(manifest.files) == {
        "README.md",
        "evidence.json",
        "recipe.toml",
        "weights/model.safetensors",
        "weights/more/config.json",
    }
    assert manifest.weights_bytes == sum(p.stat().st_size for p in (written / "weights").rglob("*") if p.is_file())
    assert value_in(written) == 1.0
    assert Evidence.load(written / "evidence.json").seed == 0
    assert str(Recipe.read(written)) == "int8"
    assert sorted(path.name for path in written.parent.iterdir()) == ["out"]


def test_other_tasks_go_to_the_module_runtime(tmp_path: Path) -> None:
    assert write_artifact(tmp_path / "a", SmallModel(1, task="embedding"), RECIPE, evidence()).runtime == "module"
    assert write_artifact(tmp_path / "b", SmallModel(1), RECIPE, evidence(), runtime="module").runtime == "module"


def test_the_card_says_what_how_and_how_well(written: Path) -> None:
    card = (written / "README.md").read_text()
    assert 'name = "int8"' in card and "headway.load" in card and "optimize small on here" in card
    noted = evidence()
    noted.notes.append("calibrated on little")
    write_artifact(written, SmallModel(1.0), RECIPE, noted)
    assert "## Notes\n\n- calibrated on little\n" in (written / "README.md").read_text()
    write_artifact(written, SmallModel(1.0), RECIPE, evidence(), "# My card\n")
    assert (written / "README.md").read_text() == "# My card\n"
    read_manifest(written)


@pytest.mark.parametrize("change", ["edited", "removed", "linked"])
def test_the_card_is_covered_as_every_other_file_is(written: Path, tmp_path: Path, change: str) -> None:
    card = written / "README.md"
    content = card.read_bytes()
    card.unlink()
    if change == "edited":
        card.write_bytes(content.replace(b"small", b"large"))
    elif change == "linked":
        (tmp_path / "same").write_bytes(content)
        card.symlink_to(tmp_path / "same")
    with pytest.raises(BadInput, match=r"README\.md"):
        read_manifest(written)


def test_an_artifact_is_replaced_but_nothing_else_is(written: Path, tmp_path: Path) -> None:
    write_artifact(written, SmallModel(2.0), RECIPE, evidence())
    assert value_in(written) == 2.0
    with pytest.raises(BadInput, match="exists already"):
        write_artifact(written, SmallModel(3.0), RECIPE, evidence(), replace=False)
    mine = tmp_path / "mine"
    mine.mkdir()
    for replace in (True, False):
        write_artifact(mine, SmallModel(3.0), RECIPE, evidence(), replace=replace)
        shutil.rmtree(mine)
        mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="is no artifact"):
        write_artifact(mine, SmallModel(3.0), RECIPE, evidence())
    assert (mine / "thesis.tex").read_text() == "x"


def test_what_a_user_put_beside_an_artifact_s_files_is_not_replaced(written: Path) -> None:
    (written / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match=r"holds more than an artifact: notes.txt"):
        write_artifact(written, SmallModel(2.0), RECIPE, evidence())
    (written / "notes.txt").unlink()
    with pytest.raises(BadInput, match="lies in the artifact"):
        write_artifact(written / "deep" / "other", SmallModel(2.0), RECIPE, evidence())
    assert value_in(written) == 1.0
    write_artifact(written, SmallModel(2.0), RECIPE, evidence())
    assert value_in(written) == 2.0


def test_a_link_to_an_artifact_stays_one(written: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written)
    write_artifact(link, SmallModel(2.0), RECIPE, evidence())
    assert link.is_symlink()
    assert value_in(written) == 2.0
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is no folder"):
        check_place(link)


def test_a_disk_without_room_is_refused_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(Lacking, match="256 bytes are needed, 1 are free"):
        write_artifact(tmp_path / "deep" / "out", SmallModel(1.0), RECIPE, evidence())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_inside_the_weights_library_is_explained(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    class Unlucky(SmallModel):
        def save(self, folder: Path) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(Lacking, match="No space left on device; free disk space"):
        write_artifact(tmp_path / "out", Unlucky(1.0), RECIPE, evidence())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["recipe.toml", "evidence.json", "weights/model.safetensors", "weights/more/config.json"]
)
def test_changed_cut_and_missing_files_are_named(written: Path, name: str) -> None:
    path = written / name
    content = path.read_bytes()
    for broken, words in ((content + b" ", "are there"), (content[:-1], "are there"), (content[:-1] + b"\0", "digest")):
        path.write_bytes(broken)
        with pytest.raises(BadFile, match=words) as caught:
            read_manifest(written)
        assert caught.value.path == path and caught.value.exit_code == 2
    path.unlink()
    with pytest.raises(BadFile, match="missing"):
        read_manifest(written)
    read_manifest(written, verify=False)


def test_long_files_are_checked_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "PART_BYTES", 1000)
    out = tmp_path / "out"
    record = write_artifact(out, SmallModel(1.0, 1000), RECIPE, evidence()).files["weights/model.safetensors"]
    path = out / "weights" / "model.safetensors"
    data = path.read_bytes()
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert record.parts == tuple(hashlib.sha256(data[i : i + 1000]).hexdigest() for i in range(0, len(data), 1000))
    read_manifest(out)
    for position in (0, 999, 1000, 2500, len(data) - 1):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(BadFile, match="does not match its digest") as caught:
            read_manifest(out)
        assert caught.value.offset == position // 1000 * 1000
    path.write_bytes(data)
    files = json.loads((out / "headway.json").read_text())["files"]
    files["weights/model.safetensors"]["parts"] = list(record.parts[:-1])
    edit(out, files=files)
    with pytest.raises(BadFile, match="digest"):
        read_manifest(out)


def test_weights_nobody_listed_are_refused(written: Path) -> None:
    (written / "weights" / "modeling.py").write_text("import os")
    with pytest.raises(BadFile, match="not listed"):
        read_manifest(written)


def test_links_are_refused_even_to_the_right_content(written: Path) -> None:
    path = written / "weights" / "model.safetensors"
    path.rename(written.parent / "elsewhere")
    path.symlink_to(written.parent / "elsewhere")
    with pytest.raises(BadInput):
        read_manifest(written)


def test_names_that_leave_the_folder_are_refused(written: Path) -> None:
    (written.parent / "secret").write_bytes(b"s")
    files = json.loads((written / "headway.json").read_text())["files"]
    edit(written, files={**files, "../secret": {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BadInput, match="plain name"):
        read_manifest(written)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 99}, "schema 99 is newer than this headway reads (1); run: pip install -U headway"),
        ({"schema": "1"}, "schema='1' is no version number"),
        ({"schema": True}, "no version number"),
        ({"surprise": 1}, "unknown field 'surprise'; fields are: runtime, name"),
        ({"files": {}}, "evidence.json is not listed"),
        ({"files": {"recipe.toml": {"sha256": "0"}}}, "files.recipe.toml: field 'bytes' is missing"),
        ({"runtime": 3}, "runtime: str is expected, not int"),
        ({"extra": None}, "extra: a JSON object is expected, not null"),
    ],
)
def test_manifests_of_another_kind_are_refused_in_one_line(
    written: Path, changes: dict[str, object], words: str
) -> None:
    edit(written, **changes)
    with pytest.raises(BadInput) as caught:
        read_manifest(written)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_without_later_optional_fields_still_loads(written: Path) -> None:
    """What the first version wrote has no field that a later version may add."""
    path = written / "headway.json"
    document = json.loads(path.read_text())
    del document["extra"]
    document["digest"] = artifact._digest(document)
    path.write_text(json.dumps(document))
    assert read_manifest(written).extra == {}


def test_an_edited_manifest_is_noticed(written: Path) -> None:
    path = written / "headway.json"
    path.write_text(path.read_text().replace('"runtime": "language"', '"runtime": "module"'))
    with pytest.raises(BadFile, match="changed after it was written"):
        read_manifest(written)
    path.write_text("[]")
    with pytest.raises(BadFile):
        read_manifest(written)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no artifact"):
        read_manifest(tmp_path)
