"""Which schemas are kept: what is on the list passes unchanged, everything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.core.errors import BadInput
from headway.serving.schema import MOST_DEPTH, MOST_NODES, checked


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"oneOf": {"type": "string"}}, "required": ["oneOf"]},
        {"$defs": {"a": {"type": "null"}}, "anyOf": [{"$ref": "#/$defs/a"}, {"const": {"allOf": 1}}]},
        {"type": ["string", "null"], "pattern": "^a+$", "maxLength": 9},
        {"enum": [1, "a", None, {"not": 3}]},
        nested(MOST_DEPTH),
        True,
    ],
)
def test_what_is_supported_passes(schema: Any) -> None:
    assert json.loads(checked(schema)) == schema


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"oneOf": [{"type": "string"}]}, "oneOf"),
        ({"type": "object", "properties": {"a": {"allOf": []}}}, "allOf"),
        ({"type": "array", "items": {"uniqueItems": True}}, "uniqueItems"),
        ({"patternProperties": {}}, "patternProperties"),
        ({"$ref": "https://example.com/schema"}, "ref"),
        ({"$ref": "#/properties/a"}, "ref"),
        ({"type": "text"}, "types are"),
        ({"type": "string", "maxLength": 10**9}, "maxLength"),
        ({"type": "array", "minItems": -1}, "minItems"),
        ({"type": "string", "pattern": "a" * 5000}, "pattern"),
        ({"type": "string", "format": "regex"}, "format"),
        ({"type": "number", "minimum": 1e300}, "minimum"),
        ({"minimum": float("nan")}, "JSON"),
        ({"enum": list(range(10**4))}, "enum"),
        ({"properties": {str(at): {} for at in range(MOST_NODES + 1)}}, "parts"),
        ({"description": "x" * 10**6}, "characters"),
        (nested(MOST_DEPTH + 1), "deep"),
        ({"anyOf": [False]}, "allows nothing"),
        ({"properties": []}, "properties"),
        (["a"], "no schema"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        checked(schema)
