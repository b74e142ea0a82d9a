"""`Recipe`: an ordered list of systems with their settings, as a TOML file or one line of text.

One line: `lut-gemm(bits=3, only="*.mlp.*") + zipcache(salient_ratio=0.4) + sarathi-serve`.
TOML: one `[[system]]` table per system, its `name` beside its settings.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.core.errors import BadInput
from headway.core.recipe_text import NAME, read_line
from headway.core.registry import systems

_FORMS = "give a .toml file, an artifact folder or the recipe in place"
_TABLES = 'write one [[system]] table per system, with name = "..." and its settings, each on its own line'


@dataclass(frozen=True)
class Step:
    """One system of a recipe with the settings that differ from its defaults."""

    system: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.settings:
            return self.system
        inside = ", ".join(f"{key}={_show(value)}" for key, value in self.settings.items())
        return f"{self.system}({inside})"

    def as_json(self) -> dict[str, Any]:
        return {"system": self.system, "settings": dict(self.settings)}


@dataclass(frozen=True)
class Recipe:
    """Systems in the order they are applied. An empty recipe is the unmodified model."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return " + ".join(str(step) for step in self.steps) or "(unmodified)"

    def __add__(self, other: Recipe) -> Recipe:
        return Recipe(self.steps + other.steps)

    def as_json(self) -> list[dict[str, Any]]:
        return [step.as_json() for step in self.steps]

    def to_toml(self) -> str:
        """The recipe as a file people read, diff and share; `Recipe.parse_toml` gives it back."""
        blocks = []
        for step in self.steps:
            lines = ["[[system]]", f'name = "{step.system}"']
            lines += [f"{key} = {_toml(value)}" for key, value in step.settings.items()]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n" if blocks else "system = []\n"

    @classmethod
    def from_json(cls, steps: list[dict[str, Any]]) -> Recipe:
        return cls(tuple(Step(step["system"], step.get("settings", {})) for step in steps))

    @classmethod
    def parse_toml(cls, text: str, source: str = "recipe") -> Recipe:
        """Raises `BadInput` for bad TOML, an unknown top-level key or a system without a name."""
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise BadInput(f"{source}: not TOML: {str(error)[:200]}", _TABLES) from None
        extra = set(document) - {"system"}
        tables = document.get("system", [])
        if extra or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            what = f"unexpected key {sorted(extra)[0]!r}" if extra else "'system' is not a list of tables"
            raise BadInput(f"{source}: {what}", _TABLES)
        if not document:
            raise BadInput(f"{source} is empty", _TABLES)
        steps = []
        for table in tables:
            name = table.pop("name", None)
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise BadInput(f"{source}: a [[system]] table has no valid name", 'write name = "lut-gemm"')
            steps.append(Step(name, table))
        return cls(tuple(steps))

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """One line of text; raises `BadInput` that points at the character."""
        return cls(tuple(Step(name, settings) for name, settings in read_line(text)))

    @classmethod
    def read(cls, source: str | Path | Recipe) -> Recipe:
        """A recipe from a path that ends in .toml, an artifact folder, or from text in place; or one as it is."""
        if isinstance(source, Recipe):
            return source
        if not isinstance(source, str | Path):
            raise BadInput(f"a recipe is text, not {type(source).__name__}", 'write e.g. "lut-gemm(bits=4)"')
        path, text = Path(source), str(source)
        held = path / "recipe.toml"
        if text.endswith(".toml") or (text and _is_there(held)):
            file = path if text.endswith(".toml") else held
            if not file.is_file():
                raise BadInput(f"no recipe file {str(file)!r}", _FORMS)
            if file.stat().st_size > 1_000_000:
                raise BadInput(f"{file}: a recipe over 1 MB", "a recipe is a short list of systems")
            try:
                return cls.parse_toml(file.read_text(), str(file))
            except UnicodeDecodeError:
                raise BadInput(f"{file}: not UTF-8 text", "a recipe is a TOML file") from None
        if text and _is_there(path) and text not in systems():
            what = "a folder without recipe.toml" if path.is_dir() else "no .toml file"
            raise BadInput(f"recipe {text!r} is {what}", _FORMS)
        return cls.parse(text)


def _is_there(path: Path) -> bool:
    """Whether something has that name; a line too long for a name is none."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}'" if '"' in value else f'"{value}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    return repr(value)


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's strings, but for DEL
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return _show(value)
