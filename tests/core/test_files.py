"""Files are whole or absent, errors name the mend, reading stays inside its folder."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from headway.core import files
from headway.core.errors import BadFile, BadInput, HeadwayError, Lacking


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_replaces_the_whole_content_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.atomic_write_bytes(path, b"x" * 3_000_000)
    files.atomic_write_json(path, {"a": 1})
    assert files.read_json(path, limit=100) == {"a": 1}
    files.atomic_write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert names(tmp_path) == ["value.json"]


def test_a_failing_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value"
    files.atomic_write_bytes(path, b"old")
    for call, code, kind in (("write", errno.ENOSPC, Lacking), ("fsync", errno.EIO, Lacking)):

        def fail(*_: object, code: int = code) -> int:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, call, fail)
            with pytest.raises(kind) as caught:
                files.atomic_write_bytes(path, b"new")
        assert ";" in str(caught.value) and "\n" not in str(caught.value)
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["value"]


def test_a_write_that_makes_no_progress_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "write", lambda *_: 0)
    with pytest.raises(Lacking):
        files.write_file(tmp_path / "a", b"data")


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (errno.ENOSPC, Lacking, "free disk space"),
        (errno.EDQUOT, Lacking, "free disk space"),
        (errno.EACCES, BadInput, "HEADWAY_HOME"),
        (errno.EROFS, BadInput, "HEADWAY_HOME"),
        (errno.ENOTDIR, BadInput, "check the path"),
        (errno.EIO, Lacking, "disk failed"),
    ],
)
def test_each_operating_system_error_has_its_mend(code: int, kind: type[HeadwayError], word: str) -> None:
    error = files.explain(OSError(code, os.strerror(code)), "/somewhere")
    assert type(error) is kind
    assert word in error.mend and "/somewhere" in error.what


def test_the_weights_librarys_own_errors_are_explained_where_the_system_is_to_blame(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(Lacking, match="free disk space"), files.explained(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), files.explained(tmp_path):
        raise SafetensorError("Error while deserializing header: header too large")


def test_an_error_without_a_number_still_speaks() -> None:
    assert "odd" in str(files.explain(OSError("odd"), "p"))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with files.atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        files.write_file(folder / "sub" / "a", b"1")
        assert not target.exists()
    assert files.tree_files(target) == ["sub/a"]
    assert names(target.parent) == ["out"]

    with pytest.raises(RuntimeError), files.atomic_folder(target, replace=True) as folder:
        files.write_file(folder / "half", b"1")
        raise RuntimeError
    assert files.tree_files(target) == ["sub/a"]
    assert names(target.parent) == ["out"]


def test_an_existing_folder_is_refused_or_exchanged(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for content in (b"1", b"2"):
        with files.atomic_folder(target, replace=True) as folder:
            files.write_file(folder / content.decode(), content)
    assert files.tree_files(target) == ["2"]
    with pytest.raises(BadInput, match="exists already"), files.atomic_folder(target):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("second_rename_fails", [False, True])
def test_without_exchange_two_renames_do_and_the_second_failing_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second_rename_fails: bool
) -> None:
    target = tmp_path / "out"
    with files.atomic_folder(target) as folder:
        files.write_file(folder / "old", b"1")

    def unsupported(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, "no exchange here")

    monkeypatch.setattr(files, "_exchange", unsupported)
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if second_rename_fails and to == target and "old" not in names(self):
            raise OSError(errno.EIO, "failed")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    try:
        with files.atomic_folder(target, replace=True) as folder:
            files.write_file(folder / "new", b"2")
    except Lacking:
        assert second_rename_fails
    assert files.tree_files(target) == ["old" if second_rename_fails else "new"]
    assert names(tmp_path) == ["out"]


def test_another_process_that_makes_or_removes_the_folder_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    real = os.path.lexists
    answers = {target: [False, True]}  # absent, then present, whatever is true

    def lexists(path: str | Path) -> bool:
        planned = answers.get(Path(path))
        return planned.pop(0) if planned else real(path)

    for truth in ("there", "gone"):
        if truth == "there":
            target.mkdir()
            (target / "theirs").write_bytes(b"1")
            answers[target] = [False]
        else:
            files.remove(target)
            answers[target] = [True]
        monkeypatch.setattr(files.os.path, "lexists", lexists)
        with files.atomic_folder(target, replace=True) as folder:
            files.write_file(folder / truth, b"2")
        assert files.tree_files(target) == [truth]
        assert names(tmp_path) == ["out"]


def test_an_exchange_that_fails_for_another_reason_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "absent", tmp_path / "neither")


def test_sweep_removes_what_the_dead_left_and_nothing_that_lives(tmp_path: Path) -> None:
    dead = tmp_path / ".out.tmp-0123"
    dead.mkdir()
    (dead / "a").write_bytes(b"1")
    (tmp_path / ".other.tmp-0123").write_bytes(b"")
    (tmp_path / "mine.tmp-0123").write_bytes(b"")
    assert files.sweep(tmp_path, "out") == 0, "young names are left alone"
    with files.atomic_folder(tmp_path / "out") as living:
        assert files.sweep(tmp_path, "out", older_than_s=0) == 1
        assert living.exists() and not dead.exists()
    assert files.sweep(tmp_path, older_than_s=0) == 1
    assert names(tmp_path) == ["mine.tmp-0123", "out"]


def test_names_with_wildcards_sweep_only_themselves(tmp_path: Path) -> None:
    (tmp_path / ".[a].tmp-1").write_bytes(b"")
    (tmp_path / ".a.tmp-1").write_bytes(b"")
    assert files.sweep(tmp_path, "[a]", older_than_s=0) == 1
    assert names(tmp_path) == [".a.tmp-1"]


def test_home_folders_follow_headway_home_then_xdg_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "h"))
    assert files.cache_folder("steps") == tmp_path / "h" / "cache" / "steps"
    assert files.state_folder().is_dir()
    monkeypatch.delenv("HEADWAY_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert files.cache_folder() == tmp_path / "c" / "headway"
    assert files.state_folder() == tmp_path / "me" / ".local" / "state" / "headway"


def test_no_home_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.delenv("HEADWAY_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(Lacking, match="HEADWAY_HOME"):
        files.cache_folder()


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match="check the path"):
        files.make_folder(tmp_path / "file" / "below")


def test_digests_are_those_of_the_bytes_and_parts_do_not_run_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_of("ab", "c") != files.sha256_of("a", b"bc")


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 11)
    assert files.read_bytes(path, limit=11) == b"x" * 11
    with pytest.raises(BadFile) as caught:
        files.read_bytes(path, limit=10)
    assert caught.value.offset == 10
    with pytest.raises(BadInput):
        files.read_bytes(tmp_path / "absent", limit=1)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "", "a//b", "./a", "a\\b", "a\0b"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="plain name"):
        files.open_beneath(tmp_path, name)


def test_only_regular_files_reached_without_links_are_opened(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "w").write_bytes(b"ok")
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe")
    descriptor = files.open_beneath(inside, "sub/w")
    assert os.read(descriptor, 10) == b"ok"
    os.close(descriptor)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("link", "folder/secret", "pipe", "sub", "absent", "sub/w/x"):
        with pytest.raises(BadInput):
            files.open_beneath(inside, name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "refusals close what they opened"


def test_trees_list_plain_files_and_refuse_the_rest(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z").write_bytes(b"")
    assert files.tree_files(tmp_path) == ["a/z", "b"]
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(os.path.relpath(tmp_path / "s"))
        with pytest.raises(BadInput, match="neither"):
            files.tree_files(tmp_path)


def test_toml_is_read_or_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("a = 1\n[b]\nc = 'd'\n")
    assert files.read_toml(path) == {"a": 1, "b": {"c": "d"}}
    path.write_text("a = 1\nb = = 2\n")
    with pytest.raises(BadInput, match="line 2"):
        files.read_toml(path)
    path.write_bytes(b"a = '\xff'\n")
    with pytest.raises(BadFile, match="UTF-8"):
        files.read_toml(path)


def test_whoever_reads_a_folder_reads_its_files(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "made") as folder:
        (folder / "inside").mkdir()
        for name in ("own", "inside/own"):
            (folder / name).write_text("x")
            (folder / name).chmod(0o600)
    wanted = (tmp_path / "made").stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "made").rglob("own")} == {wanted}
    assert wanted & 0o044
