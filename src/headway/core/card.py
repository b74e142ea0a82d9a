"""`Card`: what is known of a system without importing it."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("model", "transform", "policy", "planner", "instrument")
PROPERTIES = frozenset({"static_weights", "bitwise_equal", "kv_cache", "float_weights"})
"""What cards may need, break and give; an unmodified language model has all of them."""


@dataclass(frozen=True)
class Card:
    """Every argument is a literal, so that the registry can read it from the source without running the module."""

    slug: str
    title: str
    paper: str
    kind: str
    slot: str
    summary: str
    claim: str
    needs: tuple[str, ...] = ()
    """Properties of the model this system relies on (`static_weights`, `kv_cache` ...)."""
    breaks: tuple[str, ...] = ()
    """Properties that no longer hold after it (`bitwise_equal`, `static_weights` ...)."""
    gives: tuple[str, ...] = ()
    """Properties it adds, which a later system may need."""
    reference: bool = False
    """True for a slot's plain reference: usable in recipes, but no published system."""
    extra: str = ""
    """The optional dependency group it needs."""
