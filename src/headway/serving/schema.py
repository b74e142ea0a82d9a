"""JSON schemas that answers can be held to: a list of keywords that are kept exactly, and caps on all that grows.

What is not on the list is refused by name, as a schema that is kept only in part would promise what it does not give.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from headway.core.errors import BadInput

MOST_CHARACTERS = 1 << 16
MOST_NODES = 2000
MOST_DEPTH = 32
MOST_LENGTH = 4096
"""Of a string, in characters, where the schema names it."""
MOST_ITEMS = 1024
MOST_CHOICES = 2000
MOST_PATTERN = 512
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


def checked(schema: object) -> str:
    """The schema as text. Raises `BadInput` naming the keyword that is not kept, or the cap it breaks."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise _bad("it is not plain JSON", "give finite numbers and less depth") from None
    if len(text) > MOST_CHARACTERS:
        raise _bad(f"it has {len(text)} characters", f"the limit is {MOST_CHARACTERS}")
    _Walk().schema(schema, 0)
    return text


def _bad(what: str, mend: str) -> BadInput:
    return BadInput(f"the JSON schema: {what}", mend)


class _Walk:
    def __init__(self) -> None:
        self._nodes = 0

    def schema(self, schema: object, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise _bad(f"more than {MOST_NODES} parts", "give a smaller one")
        if depth > MOST_DEPTH:
            raise _bad(f"nested more than {MOST_DEPTH} deep", "give a flatter one")
        if isinstance(schema, bool):
            if not schema:
                raise _bad("'false' allows nothing", "leave it out")
            return
        if not isinstance(schema, Mapping):
            raise _bad(f"{json.dumps(schema):.40} is no schema", "give an object")
        for keyword, value in schema.items():
            check = _KEYWORDS.get(keyword)
            if check is None:
                raise _bad(
                    f"the keyword {keyword!r:.80} is not supported", f"supported: {', '.join(sorted(_KEYWORDS))}"
                )
            check(self, keyword, value, depth)

    def note(self, keyword: str, value: Any, depth: int) -> None:
        """Says nothing about what is valid."""

    def named(self, keyword: str, value: Any, depth: int) -> None:
        if not isinstance(value, Mapping):
            raise _bad(f"{keyword!r} is no object", "give schemas by name")
        for part in value.values():
            self.schema(part, depth + 1)

    def listed(self, keyword: str, value: Any, depth: int) -> None:
        if not isinstance(value, list) or not value:
            raise _bad(f"{keyword!r} is no list of schemas", "give at least one")
        for part in value:
            self.schema(part, depth + 1)

    def additional(self, keyword: str, value: Any, depth: int) -> None:
        if not isinstance(value, bool):
            self.schema(value, depth + 1)

    def types(self, keyword: str, value: Any, depth: int) -> None:
        given = value if isinstance(value, list) else [value]
        if not given or not all(isinstance(name, str) and name in TYPES for name in given):
            raise _bad(f"type {json.dumps(value):.80}", f"types are: {', '.join(TYPES)}")

    def choices(self, keyword: str, value: Any, depth: int) -> None:
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_CHOICES:
            raise _bad("'enum' is no list", f"give 1..{MOST_CHOICES} values")

    def names(self, keyword: str, value: Any, depth: int) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise _bad(f"{keyword!r} is no list of names", "give texts")

    def length(self, keyword: str, value: Any, depth: int) -> None:
        _whole(keyword, value, MOST_LENGTH)

    def count(self, keyword: str, value: Any, depth: int) -> None:
        _whole(keyword, value, MOST_ITEMS)

    def number(self, keyword: str, value: Any, depth: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15:
            raise _bad(f"{keyword}={json.dumps(value):.40}", "give a number within 1e15")

    def pattern(self, keyword: str, value: Any, depth: int) -> None:
        if not isinstance(value, str) or len(value) > MOST_PATTERN:
            raise _bad(f"a pattern of {len(str(value))} characters", f"the limit is {MOST_PATTERN}")

    def format(self, keyword: str, value: Any, depth: int) -> None:
        if value not in FORMATS:
            raise _bad(f"the format {json.dumps(value):.80} is not supported", f"formats are: {', '.join(FORMATS)}")

    def reference(self, keyword: str, value: Any, depth: int) -> None:
        if not isinstance(value, str) or not (value == "#" or value.startswith(("#/$defs/", "#/definitions/"))):
            raise _bad(f"$ref {json.dumps(value):.80}", "refer to #/$defs/NAME of the same schema")


def _whole(keyword: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise _bad(f"{keyword}={json.dumps(value):.40}", f"give a whole number up to {most}")


_KEYWORDS: dict[str, Callable[[_Walk, str, Any, int], None]] = {
    **dict.fromkeys(("$schema", "$id", "$comment", "title", "description", "default", "examples"), _Walk.note),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly"), _Walk.note),
    **dict.fromkeys(("$defs", "definitions", "properties"), _Walk.named),
    **dict.fromkeys(("anyOf", "prefixItems"), _Walk.listed),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _Walk.number),
    **dict.fromkeys(("minLength", "maxLength"), _Walk.length),
    **dict.fromkeys(("minItems", "maxItems"), _Walk.count),
    "items": _Walk.additional,
    "additionalProperties": _Walk.additional,
    "required": _Walk.names,
    "type": _Walk.types,
    "enum": _Walk.choices,
    "const": _Walk.note,
    "pattern": _Walk.pattern,
    "format": _Walk.format,
    "$ref": _Walk.reference,
}
