"""HTML that is escaped by construction: only what `tag` made is trusted, every other string is text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from headway.core.jsontext import plain

Child = Any
"""`Markup`, text, a number, None (nothing), or an iterable of these."""

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})


class Markup(str):
    """A string that is HTML already. Made only by this module and from files of this package."""

    __slots__ = ()


def render(child: Child) -> Markup:
    """HTML of a child: text is escaped, iterables are joined, None is nothing."""
    if child is None or child is False:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return Markup(escape(_printable(child)))
    if isinstance(child, Iterable):
        return Markup("".join(render(item) for item in child))
    return Markup(escape(str(child)))


def tag(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """`<name attributes>children</name>`.

    Attribute names: a trailing `_` is dropped and other `_` become `-`. True gives a bare attribute; None and False
    leave it out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        word = key.rstrip("_").replace("_", "-")
        words.append(word if value is True else f'{word}="{escape(_printable(str(value)))}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if name in _VOID else f"{opening}{render(children)}</{name}>")


def data_block(identifier: str, value: Mapping[str, Any]) -> Markup:
    """A `<script type="application/json">` whose content cannot end the element, whatever strings it holds."""
    text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)  # ASCII: no U+2028, no lone surrogate
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{escape(identifier)}">{text}</script>')


def _printable(text: str) -> str:
    """`text` without characters that HTML forbids: control codes and lone surrogates show as U+FFFD."""
    return "".join(
        character if character in "\n\t" or (character >= " " and not "\ud800" <= character <= "\udfff") else "\ufffd"
        for character in text
    )
