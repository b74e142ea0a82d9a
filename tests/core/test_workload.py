"""Workloads: the splits never overlap, and a text that cannot be used is refused."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

import pytest

from headway.core.errors import BadInput, Lacking
from headway.core.workload import (
    CALIBRATION_CHARACTERS,
    HELDOUT_BYTES,
    default_texts,
    docstrings,
    split_text,
    user_function,
)


def test_the_default_splits_are_disjoint_and_the_held_out_part_is_the_published_one() -> None:
    from pydoc_data.topics import topics

    texts = default_texts()
    pages = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    assert texts.heldout.encode() == pages[:HELDOUT_BYTES]
    assert texts.heldout.encode() + texts.search.encode() == pages
    assert CALIBRATION_CHARACTERS <= len(texts.calibration) < 1.1 * CALIBRATION_CHARACTERS
    paragraphs = {part for part in texts.heldout.split("\n\n") if len(part) > 200}
    assert not paragraphs & set(texts.calibration.split("\n\n"))


def test_docstrings_are_read_from_sources_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    library.mkdir()
    for source in sorted(Path(ast.__file__).parent.glob("a*.py")):
        shutil.copy(source, library)
    monkeypatch.setattr(ast, "__file__", str(library / "ast.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = default_texts()
    assert "\n\n".join(docstrings()).startswith(first.calibration)
    read: list[object] = []
    monkeypatch.setattr(ast, "parse", read.append)
    assert default_texts() == first
    assert not read


def test_a_changed_library_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    (library / "test").mkdir(parents=True)
    (library / "site-packages").mkdir()
    for name in ("ast.py", "b.py", "test/t.py", "site-packages/s.py"):
        (library / name).write_text(f'"""The first words of {name}{" and more" * 12}."""\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ast, "__file__", str(library / "ast.py"))
    first = default_texts().calibration
    assert [part.split()[4] for part in first.split("\n\n")] == ["ast.py", "b.py"]
    (library / "b.py").write_text(f'"""Other words{" and more" * 12}."""\n')
    assert default_texts().calibration == first.split("\n\n")[0] + "\n\n" + f"Other words{' and more' * 12}."


def test_a_python_without_help_topics_asks_for_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(Lacking, match="--text FILE"):
        default_texts()


def test_docstrings_of_every_nested_definition_come_as_a_walk_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = '"""{} of' + " more" * 20 + '"""'
    nested = ("for x in y:", "while x:", "with x:", "if x:", "async def f():", "class C:", "match x:\n case 1:")
    source = words.format("module") + "\n"
    for number, outer in enumerate(nested):
        inner = " " * (1 + outer.count("\n")) + "def g(): " + words.format(f"inside {number}")
        source += f"{outer}\n{inner}\n"
    branches = ("try:", "except E:", "else:", "finally:")
    source += "".join(f"{branch}\n class D: {words.format(branch)}\n" for branch in branches)
    (tmp_path / "ast.py").write_text(source)
    monkeypatch.setattr(ast, "__file__", str(tmp_path / "ast.py"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    assert list(docstrings()) == [text for text in found if text]
    assert len(found) > len(nested) + len(branches)


def test_docstrings_come_in_one_order() -> None:
    first = [text for text, _ in zip(docstrings(), range(50), strict=False)]
    assert first == [text for text, _ in zip(docstrings(), range(50), strict=False)]


def test_a_users_text_is_cut_in_three(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("".join(chr(97 + i % 26) for i in range(4000)))
    texts = split_text(path)
    assert texts.calibration + texts.search + texts.heldout == path.read_text()
    assert texts.as_json()["search"]["bytes"] == 1000


@pytest.mark.parametrize("content", [b"", b"  \n", b"ok \xff"])
def test_an_unusable_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        split_text(path)


@pytest.mark.parametrize("name", ["nothing", "os:", "os:no_such_name", "no_such_module:f", "os:sep"])
def test_a_function_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        user_function(name)


def test_a_users_function_is_found() -> None:
    assert user_function("os.path:join")("a", "b") == "a/b"
