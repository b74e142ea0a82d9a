"""Whether systems go together: decided from slots, needs and effects alone, so no system names another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headway.core.card import PROPERTIES, Card
from headway.core.errors import BadInput
from headway.core.recipe import Recipe
from headway.core.registry import entry
from headway.core.slots import slot


def clash(first: Card, second: Card, *, apart: bool = False) -> str:
    """One reason why `second` cannot follow `first` in a recipe, or an empty string.

    `apart`: the two take different sites, which resolves a clash in a per-site slot.
    """
    where = slot(first.slot)
    if first.slot == second.slot and where.rule == "exclusive":
        return f"{first.slug} and {second.slug} both take slot '{where.name}', which holds one system; keep one"
    if first.slot == second.slot and where.rule == "per-site" and not apart:
        return (
            f"{first.slug} and {second.slug} both take every site of the slot '{where.name}'; "
            "give each its own sites with only=..."
        )
    lost = sorted((set(first.breaks) - set(first.gives)) & set(second.needs))
    if lost and not (apart and first.slot == second.slot):
        return (
            f"{second.slug} needs {lost[0]}, which {first.slug} before it breaks; "
            f"put {second.slug} first or leave one out"
        )
    return ""


def check(recipe: Recipe, properties: frozenset[str] = PROPERTIES) -> None:
    """Raise `BadInput` with the first reason why this recipe cannot be applied; nothing is loaded or run."""
    cards = [entry(step.system).card for step in recipe.steps]
    given = set(properties)
    for index, card in enumerate(cards):
        for earlier in range(index):
            apart = _apart(recipe.steps[earlier].settings, recipe.steps[index].settings)
            reason = clash(cards[earlier], card, apart=apart)
            if reason:
                raise BadInput(f"recipe: {reason.split('; ')[0]}", reason.split("; ", 1)[1])
        missing = sorted(set(card.needs) - given - {need for c in cards[:index] for need in c.breaks})
        if missing:
            raise BadInput(
                f"recipe: {card.slug} needs {missing[0]}, which this model does not have",
                f"leave {card.slug} out",
            )
        given |= set(card.gives)


def table(cards: Sequence[Card]) -> dict[tuple[str, str], str]:
    """(first, second) -> reason, '' when they go together; always made new, never stored."""
    return {(a.slug, b.slug): clash(a, b) for a in cards for b in cards if a.slug != b.slug}


def _apart(first: Mapping[str, object], second: Mapping[str, object]) -> bool:
    """Whether both select sites by patterns; that the sites differ is checked on the model itself."""
    return bool(first.get("only") or first.get("skip")) and bool(second.get("only") or second.get("skip"))
