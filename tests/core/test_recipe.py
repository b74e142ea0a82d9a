"""Recipes: both written forms give the same steps back, and errors point at the character."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import headway
from headway.core.errors import BadInput
from headway.core.recipe import Recipe, Step

WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda word: word not in ("true", "false", "name"))
TEXT = st.text(st.characters(categories=("L", "N", "So"), include_characters="*.[]{}-_ \x7f"), max_size=12)
SCALARS = st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.floats(-1e6, 1e6), TEXT)
STEPS = st.builds(
    Step,
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,12}", fullmatch=True),
    st.dictionaries(WORDS, st.one_of(SCALARS, st.lists(TEXT, max_size=3)), max_size=4),
)


@given(st.lists(STEPS, max_size=5))
def test_both_written_forms_give_the_recipe_back(steps: list[Step]) -> None:
    recipe = Recipe(tuple(steps))
    assert Recipe.parse(str(recipe)) == recipe
    assert Recipe.parse_toml(recipe.to_toml()) == recipe
    assert Recipe.from_json(recipe.as_json()) == recipe


def test_the_line_of_the_contract_is_read() -> None:
    recipe = Recipe.parse('lut-gemm(bits=3, only="*.mlp.*") + zipcache(salient_ratio=0.4) + sarathi-serve')
    assert recipe.as_json() == [
        {"system": "lut-gemm", "settings": {"bits": 3, "only": "*.mlp.*"}},
        {"system": "zipcache", "settings": {"salient_ratio": 0.4}},
        {"system": "sarathi-serve", "settings": {}},
    ]


@pytest.mark.parametrize(
    ("text", "column", "word"),
    [
        ("lut-gemm(bits=", 15, "cannot read on"),
        ("a + ", 5, "system's name"),
        ("Upper(b=1)", 1, "system's name"),
        ("a(b=1 c=2)", 7, "','"),
        ("a(b=1,b=2)", 7, "twice"),
        ("a(b=[1", 7, "cannot read on"),
        ("a(b=1) c", 8, "'+'"),
        ("a(1)", 3, "setting's name"),
        ("a(b)", 4, "'='"),
    ],
)
def test_an_error_points_at_the_character(text: str, column: int, word: str) -> None:
    with pytest.raises(BadInput, match=f"character {column}:") as caught:
        Recipe.parse(text)
    assert word in str(caught.value)
    assert caught.value.mend


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_mend(text: str) -> None:
    try:
        Recipe.parse(text)
    except BadInput as error:
        assert error.mend


@pytest.mark.parametrize("text", ["system = 3", "[[other]]", "[[system]]\nbits = 3", "= =", "a" * 300, "system = [1]"])
def test_a_bad_file_is_refused_naming_the_file(text: str) -> None:
    with pytest.raises(BadInput, match=r"here\.toml"):
        Recipe.parse_toml(text, "here.toml")


def test_a_recipe_is_read_from_a_file_or_folder_or_in_place(tmp_path) -> None:  # type: ignore[no-untyped-def]
    recipe = Recipe.parse("lut-gemm(bits=2)")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.read(tmp_path / "recipe.toml") == Recipe.read(tmp_path) == Recipe.read("lut-gemm(bits=2)") == recipe
    with pytest.raises(BadInput, match="no recipe file"):
        Recipe.read("missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        Recipe.read(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("name", "what"),
    [("/dev/null", "no .toml file"), ("folder", "a folder without recipe.toml"), ("text", "no .toml file")],
)
def test_a_path_that_holds_no_recipe_is_said_to_be_one(
    name: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("lut-gemm")
    with pytest.raises(BadInput, match=what):
        Recipe.read(name)


def test_a_folder_named_like_a_system_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lut-gemm").mkdir()
    assert str(Recipe.read("lut-gemm")) == "lut-gemm"


@pytest.mark.parametrize("kind", ["fifo", "folder", "empty"])
def test_what_is_named_like_a_recipe_file_and_is_none_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    {"fifo": os.mkfifo, "folder": os.mkdir, "empty": Path.touch}[kind](path)
    with pytest.raises(BadInput, match=r"no recipe file .*here\.toml|here\.toml is empty"):
        Recipe.read(path)


def test_a_line_longer_than_any_file_name_is_read_in_place() -> None:
    line = " + ".join(f'int8(only="layers.{number}.mlp.*")' for number in range(40))
    assert str(Recipe.read(line)) == line


@pytest.mark.parametrize("source", [None, 3, ["int8"]])
def test_what_is_no_text_is_no_recipe(source: Any) -> None:
    with pytest.raises(BadInput, match=f"a recipe is text, not {type(source).__name__}"):
        Recipe.read(source)
    with pytest.raises(BadInput, match="a recipe is text"):
        headway.apply(source, "smollm2-135m")
