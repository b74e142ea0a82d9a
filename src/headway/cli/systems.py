"""`headway systems`: what there is, read from the registry without importing any system."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headway.cli.console import Json, Session, table
from headway.core.errors import BadInput
from headway.core.packaged import PACKAGED
from headway.core.registry import entry, systems


def command(
    slug: Annotated[str | None, typer.Argument(help="One system, in full.")] = None,
    models: Annotated[bool, typer.Option("--models", help="The packaged models instead.")] = False,
    as_json: Json = False,
) -> int:
    """List systems, or packaged models, or show one system's card: paper, slot, needs, settings, last evidence here."""
    session = Session(as_json)
    if models and slug is not None:
        raise BadInput(f"systems: --models lists them all, and {slug!r} names one system", "leave one of the two out")
    if models:
        rows = [(model.name, model.what, model.licence, model.install) for model in PACKAGED.values()]
        names = ("name", "what", "licence", "install")
        session.emit(
            {"models": [dict(zip(names, row, strict=True)) for row in rows]},
            table(("model", "what it is", "licence", "what brings it"), rows),
        )
        return 0
    if slug is not None:
        return _one(session, slug)
    cards = [found.card for found in systems().values()]
    cards.sort(key=lambda card: (card.reference, card.slot, card.slug))
    session.emit(
        {"systems": [_plain(card) for card in cards]},
        table(
            ("system", "kind", "slot", "what it does"),
            [(card.slug, card.kind, card.slot, card.summary + " (plain reference)" * card.reference) for card in cards],
        ),
    )
    return 0


def _plain(card: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(card)


def _one(session: Session, slug: str) -> int:
    from headway.core.ledger import Ledger

    found = entry(slug)
    card = found.card
    fields = found.load().settings.model_fields
    settings = [
        {
            "name": name,
            "type": _type(field.annotation),
            "default": field.default,
            "bounds": ", ".join(str(rule) for rule in field.metadata),
            "what": field.description or "",
        }
        for name, field in fields.items()
    ]
    last = Ledger.open().latest(slug)
    bars = [] if last is None else [bar.as_json() for bar in last.bars]
    lines = [
        f"{card.slug}: {card.title}",
        card.paper,
        "",
        card.summary,
        f"claim: {card.claim}",
        f"kind {card.kind}, slot {card.slot}; needs {', '.join(card.needs) or 'nothing'}; "
        f"breaks {', '.join(card.breaks) or 'nothing'}",
        "",
        table(
            ("setting", "type", "default", "bounds", "what it is"),
            [tuple(map(str, setting.values())) for setting in settings],
        ),
        "",
        "last evidence here:" if bars else f"no evidence here yet; run: headway prove {slug}",
    ]
    if last is not None:
        lines.append(last.table())
    session.emit({**_plain(card), "settings": settings, "bars": bars}, "\n".join(lines))
    return 0


def _type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
