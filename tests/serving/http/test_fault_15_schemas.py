"""Schemas: what is refused is refused by name and soon, and every finished answer is valid, on random weights."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema_rs
import pytest
from http_server import Home, Server

WORDS = ("a", "the", "on", "x1", "in")


def schema_of(generator: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of supported keywords that has some short valid instance."""
    kinds = ["integer", "number", "string", "boolean", "null", "enum", "const", "format"]
    kind = generator.choice(kinds + (["object", "array", "anyOf", "tuple"] * 2 if depth < 3 else []))
    if kind == "integer":
        low = generator.randrange(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + generator.randrange(0, 200)}
    if kind == "number":
        low = generator.randrange(-5, 5)
        names = generator.choice((("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")))
        return {"type": "number", names[0]: low, names[1]: low + generator.randrange(1, 20)}
    if kind == "string":
        if generator.random() < 0.4:
            return {"type": "string", "pattern": generator.choice(("^[a-c]{1,4}$", "^(on|the)$", "^\\d{2}-x?$"))}
        low = generator.randrange(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + generator.randrange(0, 6)}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "enum":
        return {
            "enum": generator.sample(["a", 1, None, True, "the\n", -2.5, {"k": [1]}, []], generator.randrange(1, 5))
        }
    if kind == "const":
        return {"const": generator.choice(["b", 7, None, {"a": 1}])}
    if kind == "format":
        return {"type": "string", "format": generator.choice(("date", "time", "date-time", "uuid", "ipv4"))}
    if kind == "anyOf":
        return {"anyOf": [schema_of(generator, depth + 1) for _ in range(generator.randrange(1, 4))]}
    if kind == "tuple":
        count = generator.randrange(1, 3)
        parts = [schema_of(generator, depth + 1) for _ in range(count)]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": count}
    if kind == "array":
        return {"type": "array", "items": schema_of(generator, depth + 1), "maxItems": generator.randrange(0, 3)}
    names = generator.sample(WORDS, generator.randrange(0, 4))
    return {
        "type": "object",
        "properties": {name: schema_of(generator, depth + 1) for name in names},
        "required": [name for name in names if generator.random() < 0.7],
        "additionalProperties": False,
    }


def ask(server: Server, schema: Any, seed: int = 0, most: int = 250) -> tuple[int, Any]:
    body = {
        "model": "tiny",
        "prompt": "the",
        "seed": seed,
        "max_tokens": most,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    }
    reply = server.ask("/v1/completions", body)
    return reply.status_code, reply.json()


def truth(server: Server, count: int, figures: Callable[..., None]) -> None:
    generator = random.Random(5)
    schemas = [schema_of(generator) for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda case: ask(server, case[1], case[0]), enumerate(schemas)))
    finished = 0
    for schema, (status, reply) in zip(schemas, replies, strict=True):
        assert status == 200, (schema, reply)
        choice = reply["choices"][0]
        if choice["finish_reason"] == "stop":
            value = json.loads(choice["text"])
            problem = next(jsonschema_rs.validator_for(schema, validate_formats=True).iter_errors(value), None)
            assert problem is None, (schema, choice["text"], str(problem))
            finished += 1
    figures(schemas=count, finished=finished)
    assert finished >= 0.8 * count


def test_every_finished_answer_is_valid(server: Server, figures: Callable[..., None]) -> None:
    truth(server, 150, figures)


@pytest.mark.nightly
def test_two_thousand_schemas(server: Server, figures: Callable[..., None]) -> None:
    truth(server, 2000, figures)


def test_any_json_object(server: Server) -> None:
    body = {"model": "tiny", "prompt": "the", "seed": 4, "max_tokens": 400, "response_format": {"type": "json_object"}}
    choice = server.ask("/v1/completions", body).json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["text"]), dict)


def nested(keyword: str, depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"anyOf": [schema, schema]} if keyword == "anyOf" else {"type": "array", "items": schema}
    return schema


HOSTILE: list[Any] = [
    *(
        {keyword: value}
        for keyword, value in (("oneOf", [{}]), ("allOf", [{}]), ("not", {}), ("if", {}), ("contains", {}))
    ),
    *(
        {"type": "object", keyword: value}
        for keyword, value in (("patternProperties", {"a": {}}), ("minProperties", 3))
    ),
    *({"type": "array", keyword: True} for keyword in ("uniqueItems", "unevaluatedItems")),
    {"type": "string", "maxLength": 10**9},
    {"type": "string", "maxLength": 4096, "minLength": 4096, "pattern": "^(a|b|ab)*c$"},
    *(
        {"type": "string", "pattern": pattern}
        for pattern in (
            "(" * 400,
            "^(a+)+$",
            "^(.*a.{40}){20}$",
            "(x+x+)+y" * 40,
            "^(a{1,1000}){1,1000}$",
            "\\p{L}{1,900}",
            "(?=a)b",
            "(a)\\1",
            "^((a{0,99}){0,99}){0,99}$",
            "[" * 300,
            "^" + "(a|" * 120 + "b" + ")" * 120 + "$",
            "(?i)" + "ſ" * 400,
        )
    ),
    *({"type": "string", "format": name} for name in ("regex", "json-pointer", "x" * 4000)),
    {"type": "array", "items": {"type": "integer"}, "minItems": 1024, "maxItems": 1024},
    {"type": "array", "maxItems": 10**9},
    {"$ref": "http://example.com/a"},
    {"$ref": "#/$defs/missing"},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
    {
        "$defs": {str(at): {"anyOf": [{"$ref": f"#/$defs/{at + 1}"}] * 2} for at in range(30)} | {"30": {"const": 1}},
        "$ref": "#/$defs/0",
    },
    *(nested("anyOf", depth) for depth in (8, 11)),
    *(nested("items", depth) for depth in (8, 31, 40)),
    {"enum": [f"value {at}" for at in range(2000)]},
    {"enum": ["x" * 30_000]},
    {"enum": []},
    {"type": "object", "properties": {f"p{at}": {"type": "string", "maxLength": 400} for at in range(600)}},
    {"type": "number", "minimum": 1e308},
    {"type": "integer", "minimum": 5, "maximum": 4},
    {"type": "integer", "minimum": 10**30},
    {"x-guidance": {"whitespace_flexible": True}},
    {"type": []},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "string", "pattern": "\ud800"},
]


def test_hostile_schemas_are_refused_or_kept_and_soon(home: Home, figures: Callable[..., None]) -> None:
    with home.serve() as server:
        ask(server, {"type": "integer"}, most=4)  # reads the vocabulary
        worst, refused = 0.0, 0
        for schema in HOSTILE:
            begin = time.monotonic()
            try:
                status, reply = ask(server, schema, most=4)
            except UnicodeEncodeError:
                continue
            worst = max(worst, time.monotonic() - begin)
            assert status in (200, 400), (schema, reply)
            refused += status == 400
            if status == 400:
                assert reply["error"]["message"]
        unsupported = [schema for schema in HOSTILE if {"oneOf", "allOf", "not", "if", "contains"} & set(schema)]
        for schema in unsupported:
            status, reply = ask(server, schema)
            assert status == 400 and next(iter(schema)) in reply["error"]["message"]
        assert server.live()["restarts"] == 0
        server.wait_until_quiet()
        figures(schemas=len(HOSTILE), refused=refused, worst_s=worst)
