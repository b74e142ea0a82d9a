"""The registry: which systems exist, read from their sources without importing them.

A system's module holds one literal `SYSTEM = Card(...)`. The packages below and the entry points of the group
`headway.systems` are scanned for it; nothing runs until a system is asked for. An installed plug-in that cannot be used
is left out, which one warning says, and stops nobody who does not ask for it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from headway.core.card import KINDS, PROPERTIES, Card
from headway.core.errors import EXTRAS, BadInput, HeadwayError
from headway.core.files import sha256_of
from headway.core.recipe_text import NAME
from headway.core.slots import SLOTS

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from headway.core.system import System

_MARK = re.compile(rb"^SYSTEM *(:[^=\n]*)?= *Card\(", re.MULTILINE)
_ENTRY_POINTS = "headway.systems"
_INIT = "__init__.py"
_LEFT_OUT = re.compile(r"#[^\n]*|\\\n")
_IMPORT = re.compile(
    r"(?:^|[;:])[ \t]*(?:from\b\s*([.\w]+)\s*\bimport\b\s*(\([^)]*\)|[^;\n]*)|import\s+([^;\n]+))", re.MULTILINE
)


class BrokenPlugIn(BadInput):
    """An installed plug-in that cannot be used."""

    def __init__(self, name: str, module: str, why: str, mend: str = "mend or uninstall it") -> None:
        super().__init__(f"plug-in {name!r} ({module}): {why}", mend)


@dataclass(frozen=True)
class Entry:
    """A registered system: its card and the module that defines it."""

    card: Card
    module: str
    plug_in: bool = False
    """Whether an installed package brings it."""

    def load(self) -> System[Any]:
        """Import the module and make its system (the one `System` subclass whose `card` is this one).

        Raises `BrokenPlugIn` where a plug-in's module does not run, or holds no such class that can be made.
        """
        from headway.core.system import System

        with self.blamed():
            module = importlib.import_module(self.module)
            kinds = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, System)]
            found = [kind for kind in kinds if getattr(kind, "card", None) is module.SYSTEM]
            if len(found) != 1:
                raise TypeError(f"{self.module}: expected one System with card = SYSTEM, found {len(found)}")
            system: System[Any] = found[0]()
            return system

    def imported(self, module: str) -> ModuleType:
        """A module of the system's; raises `BrokenPlugIn` for whatever a plug-in's raises."""
        with self.blamed():
            return importlib.import_module(module)

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Whatever a plug-in raises inside is its fault, but for an optional package of Headway's that is missing."""
        try:
            yield
        except HeadwayError:
            raise
        except (Exception, SystemExit) as error:
            if not self.plug_in or (isinstance(error, ModuleNotFoundError) and error.name in EXTRAS):
                raise
            raise BrokenPlugIn(self.card.slug, self.module, _said(error)) from error

    @property
    def proof_module(self) -> str | None:
        """Dotted name of the proof beside the system (`x_proof.py` or `proof.py`), if there is one."""
        package = self.module.rpartition(".")[0]
        for name in (f"{self.module}_proof", f"{package}.proof"):
            if find_source(name) is not None:
                return name
        return None


@cache
def source_digest(module: str) -> str:
    """Of the sources of a module and of what it imports of its own, directly or not, so that what a system made before
    one of them was edited is not taken for what it makes now.

    Its own are the modules of its top-level package, and single files beside that. Nothing is imported for it.
    """
    digests = _own_sources(module)
    return sha256_of(*map(str, sorted(digests.items())))[:16] if digests else ""


def _own_sources(module: str) -> dict[str, str]:
    """Module -> digest of its source."""
    digests: dict[str, str] = {}
    left = [module]
    while left:
        name = left.pop()
        if name in digests or not _is_own(name, module) or (path := _python_source(name)) is None:
            continue
        digests[name], imported = _read_source(path, name)
        left.extend(imported)
    return digests


def _is_own(name: str, module: str) -> bool:
    top, package = name.partition(".")[0], module.partition(".")[0]
    if top == package or top in sys.stdlib_module_names:
        return top == package
    beside, home = _python_source(top), _python_source(package)
    if beside is None or home is None or beside.name == _INIT:
        return False
    return beside.parent == home.parents[home.name == _INIT]


@cache
def _python_source(module: str) -> Path | None:
    package = module.rpartition(".")[0]
    above = _python_source(package) if package else None
    if above is not None and above.name != _INIT:  # a module that is no package holds none
        return None
    path = find_source(module)
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


@cache
def _read_source(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's source, and the names of what it imports anywhere in it, modules or not.

    By patterns: several threads that parse at once break Python 3.11's parser. What looks like an import in a string
    is a name too many, which does no harm.
    """
    source = path.read_bytes()
    package = module if path.name == _INIT else module.rpartition(".")[0]
    names: list[str] = []
    for origin, listed, modules in _IMPORT.findall(_LEFT_OUT.sub(" ", source.decode(errors="replace"))):
        words = [part.split()[0] for part in (listed or modules).strip("() \n").split(",") if part.strip()]
        level = len(origin) - len(origin.lstrip("."))
        above = package.rsplit(".", level - 1)[0] if level else ""
        base = ".".join(filter(None, (above, origin[level:])))
        names += [base, *(f"{base}.{word}" for word in words)] if origin else words
    return sha256_of(source), tuple(names)


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def find_source(module: str) -> Path | None:
    """Where a module's source lies, or None; the packages it is in are not imported, where it can be found without."""
    try:
        spec = _find_spec(module)
    except KeyError:  # a namespace package in another knows its path only once that is imported
        spec = importlib.util.find_spec(module)
    return None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin)


def _find_spec(module: str) -> Any:
    name, folders, spec = "", None, None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = next((s for finder in sys.meta_path if (s := finder.find_spec(name, folders)) is not None), None)
        if spec is None:
            return None
        folders = spec.submodule_search_locations or ()
    return spec


def read_card(source: bytes) -> Card | None:
    """The `SYSTEM = Card(...)` literal of a module's source, or None if it has none.

    Raises `BadInput` unless every argument is a literal keyword that a card has.
    """
    found = _MARK.search(source)
    if found is None:
        return None
    end = source.find(b"\n)", found.start())
    try:
        tree = ast.parse(source[found.start() : end + 2 if end >= 0 else None])
    except SyntaxError:  # that was not where it ends
        try:
            tree = ast.parse(source[found.start() :])
        except SyntaxError as error:
            line = source.count(b"\n", 0, found.start()) + (error.lineno or 1)
            raise BadInput(f"SYSTEM card: line {line}: {error.msg}", "mend its source") from None
    statement = tree.body[0]
    assert isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Call)
    mend = "give every argument as a literal keyword"
    if statement.value.args or not all(word.arg for word in statement.value.keywords):
        raise BadInput("SYSTEM card: an argument without a name", mend)
    try:
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in statement.value.keywords}
    except ValueError:
        raise BadInput("SYSTEM card: an argument that is computed", mend) from None
    kinds = {field.name: field.type for field in fields(Card)}
    for name, value in arguments.items():
        if name not in kinds:
            raise BadInput(f"SYSTEM card: a card has no field {name!r}", f"its fields are: {', '.join(kinds)}")
        fits = type(value).__name__ == str(kinds[name]).partition("[")[0]
        if not fits or (isinstance(value, tuple) and not all(isinstance(word, str) for word in value)):
            raise BadInput(f"SYSTEM card: {name}={value!r} is no {kinds[name]}", mend)
    missing = [field.name for field in fields(Card) if field.default is MISSING and field.name not in arguments]
    if missing:
        raise BadInput(f"SYSTEM card: {', '.join(missing)} missing", "add what is missing")
    return Card(**arguments)


def _check(card: Card) -> None:
    """Raise `BadInput` for a word of a card that nothing else knows."""
    if card.kind not in KINDS:
        raise BadInput(f"no kind {card.kind!r}", f"kinds are: {', '.join(KINDS)}")
    if card.slot not in SLOTS:
        raise BadInput(f"no slot {card.slot!r}", f"slots are: {', '.join(SLOTS)}")
    if not NAME.fullmatch(card.slug):
        raise BadInput(f"{card.slug!r} is no name a recipe can have", "use a-z, 0-9 and -")
    unknown = sorted({*card.needs, *card.breaks, *card.gives} - PROPERTIES)
    if unknown:
        raise BadInput(f"no property {unknown[0]!r}", f"properties are: {', '.join(sorted(PROPERTIES))}")


def scan(folder: Path, package: str) -> dict[str, Entry]:
    """Every system defined below `folder`, by slug; two modules with one slug are an error."""
    entries: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join((package, *(part for part in parts if part != "__init__")))
        try:
            card = read_card(path.read_bytes())
            if card is None:
                continue
            _check(card)
        except BadInput as error:
            raise BadInput(f"{module}: {error.what}", error.mend) from None
        if card.slug in entries:
            raise BadInput(f"{module} and {entries[card.slug].module} both define {card.slug!r}", "rename one")
        entries[card.slug] = Entry(card, module)
    return entries


def systems() -> dict[str, Entry]:
    """All systems by slug: Headway's own, then installed plug-ins'. Imports none of them."""
    return _all()[0]


@cache
def _all() -> tuple[dict[str, Entry], dict[str, BrokenPlugIn]]:
    """The systems by slug, and by name the plug-ins that are left out."""
    from importlib.metadata import entry_points

    entries = scan(Path(__file__).resolve().parents[1], "headway")
    broken: dict[str, BrokenPlugIn] = {}
    for point in entry_points(group=_ENTRY_POINTS):
        try:
            found = _plug_in(point, entries)
        except BrokenPlugIn as error:
            import logging

            broken[point.name] = error
            logging.getLogger(__name__).warning("headway: left out: %s", error)
        else:
            entries[found.card.slug] = found
    return entries, broken


def _plug_in(point: EntryPoint, known: dict[str, Entry]) -> Entry:
    """What an entry point names; raises `BrokenPlugIn` for whatever is wrong with it."""
    try:
        module = point.module
        source = find_source(module)
        card = None if source is None else read_card(source.read_bytes())
    except BadInput as error:
        raise BrokenPlugIn(point.name, point.value, error.what, error.mend) from None
    except (Exception, SystemExit) as error:  # a package above it runs, and may raise anything
        raise BrokenPlugIn(point.name, point.value, _said(error)) from None
    if source is None:
        raise BrokenPlugIn(point.name, module, "there is no such module", "install its package again, or uninstall it")
    if card is None:
        raise BrokenPlugIn(point.name, module, "no SYSTEM = Card(...) begins a line of it", "see docs/add-a-system.md")
    try:
        _check(card)
    except BadInput as error:
        raise BrokenPlugIn(point.name, module, error.what, error.mend) from None
    if card.slug in known:
        taken = known[card.slug]
        owner = taken.module if taken.plug_in else "Headway itself"
        raise BrokenPlugIn(point.name, module, f"{owner} has a system {card.slug!r}", "rename the slug of its card")
    return Entry(card, module, plug_in=True)


def entry(slug: str) -> Entry:
    """The system of that name; raises `BadInput` with the nearest names, `BrokenPlugIn` for one that is left out."""
    known, broken = _all()
    if slug in known:
        return known[slug]
    if slug in broken:
        raise broken[slug]
    near = get_close_matches(slug, known, n=3)
    mend = f"did you mean {' or '.join(near)}?" if near else f"systems are: {', '.join(sorted(known))}"
    raise BadInput(f"no system {slug!r}", mend)


@cache
def system(slug: str) -> System[Any]:
    """The system itself, imported and made once."""
    return entry(slug).load()
