"""Lists of systems and of packaged models, without the parser of options: they answer in under 0.2 s."""

from __future__ import annotations

from dataclasses import asdict

from headway.cli.console import Session, table
from headway.core.packaged import PACKAGED
from headway.core.registry import systems


def show(models: bool, as_json: bool) -> int:
    """`headway systems [--models] [--json]`."""
    return list_all(Session(as_json), models)


def list_all(session: Session, models: bool) -> int:
    """Every system, or every packaged model."""
    if models:
        rows = [(model.name, model.what, model.licence, model.install) for model in PACKAGED.values()]
        names = ("name", "what", "licence", "install")
        session.emit(
            {"models": [dict(zip(names, row, strict=True)) for row in rows]},
            table(("model", "what it is", "licence", "what brings it"), rows),
        )
        return 0
    cards = [found.card for found in systems().values()]
    cards.sort(key=lambda card: (card.reference, card.slot, card.slug))
    session.emit(
        {"systems": [asdict(card) for card in cards]},
        table(
            ("system", "kind", "slot", "what it does"),
            [(card.slug, card.kind, card.slot, card.summary + " (plain reference)" * card.reference) for card in cards],
        ),
    )
    return 0
