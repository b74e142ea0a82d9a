"""`headway systems`: what there is, read from the registry without importing any system."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from headway.cli.console import Session, table
from headway.cli.listing import list_all
from headway.core.errors import BadInput, HeadwayError
from headway.core.registry import entry


def command(
    session: Session,
    slug: Annotated[str | None, typer.Argument(help="One system, in full.")] = None,
    models: Annotated[bool, typer.Option("--models", help="The packaged models instead.")] = False,
) -> int:
    """List systems, or packaged models, or show one system's card: paper, slot, needs, settings, last evidence here."""
    if models and slug is not None:
        raise BadInput(f"systems: --models lists them all, and {slug!r} names one system", "leave one of the two out")
    if slug is not None:
        return _one(session, slug)
    return list_all(session, models)


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
    try:
        last = Ledger.open_to_read().latest(slug)
    except HeadwayError as error:  # a card can be read where no ledger can
        session.progress.note(str(error))
        last = None
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
    session.emit({**asdict(card), "settings": settings, "bars": bars}, "\n".join(lines))
    return 0


def _type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
