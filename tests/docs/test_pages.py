"""What the pages show is true of this version: commands, recipes, budgets, code and paths."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import struct
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from click import Command
from site_text import DOCS, ROOT, Block, all_blocks

from headway.cli.main import VERBS
from headway.cli.options import with_session
from headway.core.budget import Budget
from headway.core.compatibility import check
from headway.core.errors import BadInput
from headway.core.packaged import PACKAGED
from headway.core.recipe import Recipe
from headway.core.registry import systems

BLOCKS = all_blocks()


def commands() -> Iterator[tuple[Block, list[str], str]]:
    """(block, words, what it printed) of every `$ headway ...` line that the pages show."""
    for block in BLOCKS:
        if block.language not in ("console", "sh", "bash"):
            continue
        text = block.body.replace("\\\n", " ")
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, printed = part.partition("\n")
            words = shlex.split(line, comments=True)
            if words[:1] == ["headway"]:
                yield block, words[1:], printed.strip()


SHOWN = list(commands())


def command_of(verb: str) -> Command:
    module = importlib.import_module(f"headway.cli.{verb}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name=verb)(with_session(module.command))
    return typer.main.get_command(app)


def test_there_are_commands_to_check() -> None:
    assert len(SHOWN) > 15


@pytest.mark.parametrize(("block", "words", "printed"), SHOWN, ids=[" ".join(w)[:60] for _, w, _ in SHOWN])
def test_every_command_shown_can_be_typed(block: Block, words: list[str], printed: str) -> None:
    verb, *arguments = words
    if verb.startswith("-") or arguments in ([], ["--help"]):
        assert verb in VERBS or verb in ("--help", "--version")
        return
    assert verb in VERBS
    command = command_of(verb)
    command.make_context(f"headway {verb}", list(arguments), resilient_parsing=False)


@pytest.mark.parametrize(("block", "words", "printed"), SHOWN, ids=[" ".join(w)[:60] for _, w, _ in SHOWN])
def test_every_recipe_and_budget_shown_says_what_the_page_says(block: Block, words: list[str], printed: str) -> None:
    complaint = printed.removeprefix("headway: ") if printed.startswith("headway: ") else None
    if "--budget" in words:
        read(lambda: Budget.parse(words[words.index("--budget") + 1]), complaint)
    recipe = words[1] if words[0] == "apply" else words[words.index("--recipe") + 1] if "--recipe" in words else None
    if recipe is not None and not recipe.endswith(".toml") and recipe != "RECIPE":
        read(lambda: known(Recipe.parse(recipe)), complaint)
    if words[0] in ("prove", "systems") and len(words) > 1 and not words[1].startswith("-"):
        assert words[1] in systems() or words[1] == "ternary"


def known(recipe: Recipe) -> None:
    check(recipe)


def read(parse: object, complaint: str | None) -> None:
    """Reads without complaint, or with exactly the one the page shows."""
    assert callable(parse)
    try:
        parse()
    except BadInput as error:
        assert str(error) == complaint
    else:
        assert complaint is None


def test_models_named_in_commands_are_packaged() -> None:
    named = {
        word for _, words, _ in SHOWN for word in words if re.fullmatch(r"(smollm2|gemma3|minilm|efficientnet).*", word)
    }
    assert named and named <= set(PACKAGED)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: f"{b.page} {b.title}")
def test_every_python_block_is_python(block: Block) -> None:
    ast.parse(block.body)


def test_every_toml_recipe_is_one() -> None:
    found = [b for b in BLOCKS if b.language == "toml" and "[[system]]" in b.body]
    assert found
    for block in found:
        known(Recipe.parse_toml(block.body))
    for block in BLOCKS:
        if block.language == "toml":
            tomllib.loads(block.body)


def test_imports_in_python_blocks_exist() -> None:
    for block in BLOCKS:
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.body)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("headway"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{block.page}: {node.module}.{name.name}"


def test_source_paths_named_in_the_pages_exist() -> None:
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for path in re.findall(r"`((?:src|tests|scripts|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")):
            if "ternary" not in path and "<" not in path:
                assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_bad_file_shown_is_refused_in_those_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.llm.gguf.file import GGUFFile

    shown = next(b for b in BLOCKS if b.page == "trust.md" and "model.gguf" in b.body)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 40) + bytes(32))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        GGUFFile("model.gguf")
    assert shown.body.strip() == f"headway: {caught.value}"
