"""The registry: which systems exist, read from their sources without importing them.

A system's module holds one literal `SYSTEM = Card(...)`. The packages below and the entry points of the group
`headway.systems` are scanned for it; nothing runs until a system is asked for.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.core.card import Card
from headway.core.errors import BadInput

if TYPE_CHECKING:
    from headway.core.system import System

_MARK = b"\nSYSTEM = Card("
_ENTRY_POINTS = "headway.systems"


@dataclass(frozen=True)
class Entry:
    """A registered system: its card and the module that defines it."""

    card: Card
    module: str

    def load(self) -> System[Any]:
        """Import the module and make its system (the one `System` subclass whose `card` is this one)."""
        from headway.core.system import System

        module = importlib.import_module(self.module)
        found = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, System) and getattr(value, "card", None) is module.SYSTEM
        ]
        if len(found) != 1:
            raise TypeError(f"{self.module}: expected one System with card = SYSTEM, found {len(found)}")
        system: System[Any] = found[0]()
        return system

    @property
    def proof_module(self) -> str | None:
        """Dotted name of the proof beside the system (`x_proof.py` or `proof.py`), if there is one."""
        package = self.module.rpartition(".")[0]
        for name in (f"{self.module}_proof", f"{package}.proof"):
            if importlib.util.find_spec(name) is not None:
                return name
        return None


def read_card(source: bytes) -> Card | None:
    """The `SYSTEM = Card(...)` literal of a module's source, or None if it has none.

    Raises `BadInput` if an argument is not a literal.
    """
    start = source.find(_MARK)
    if start < 0:
        return None
    end = source.find(b"\n)", start)
    text = source[start + 1 : end + 2 if end >= 0 else None].decode()
    statement = ast.parse(text).body[0]
    assert isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
    try:
        arguments = {word.arg: ast.literal_eval(word.value) for word in statement.value.keywords if word.arg}
    except ValueError as error:
        raise BadInput(f"SYSTEM card: {error}", "give every argument as a literal keyword") from None
    return Card(**arguments)


def scan(folder: Path, package: str) -> dict[str, Entry]:
    """Every system defined below `folder`, by slug; two modules with one slug are an error."""
    entries: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*.py")):
        card = read_card(path.read_bytes())
        if card is None:
            continue
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join((package, *(part for part in parts if part != "__init__")))
        if card.slug in entries:
            raise BadInput(f"{module} and {entries[card.slug].module} both define {card.slug!r}", "rename one")
        entries[card.slug] = Entry(card, module)
    return entries


@cache
def systems() -> dict[str, Entry]:
    """All systems by slug: Headway's own, then installed plug-ins'. Imports none of them."""
    from importlib.metadata import entry_points

    entries = scan(Path(__file__).resolve().parents[1], "headway")
    for point in entry_points(group=_ENTRY_POINTS):
        spec = importlib.util.find_spec(point.value)
        if spec is None or spec.origin is None:
            continue
        card = read_card(Path(spec.origin).read_bytes())
        if card is not None and card.slug not in entries:
            entries[card.slug] = Entry(card, point.value)
    return entries


def entry(slug: str) -> Entry:
    """The system of that name; raises `BadInput` with the nearest names."""
    known = systems()
    if slug in known:
        return known[slug]
    near = get_close_matches(slug, known, n=3)
    mend = f"did you mean {' or '.join(near)}?" if near else f"systems are: {', '.join(sorted(known))}"
    raise BadInput(f"no system {slug!r}", mend)


@cache
def system(slug: str) -> System[Any]:
    """The system itself, imported and made once."""
    return entry(slug).load()
