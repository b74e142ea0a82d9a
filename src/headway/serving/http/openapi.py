"""The OpenAPI document: what the routes take and give, made from the same classes that check it."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from headway.core.version import __version__
from headway.serving.http.bodies import ChatBody, CompletionBody, EmbeddingBody

_REF = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503)


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    _, schemas = models_json_schema(
        [(body, "validation") for body in (ChatBody, CompletionBody, EmbeddingBody)], ref_template=_REF
    )
    parts = {**schemas["$defs"], "Error": _ERROR}
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    posts = {
        "/v1/chat/completions": (ChatBody, events),
        "/v1/completions": (CompletionBody, events),
        "/v1/embeddings": (EmbeddingBody, {}),
    }
    paths: dict[str, Any] = {
        path: {
            "post": {
                "summary": (body.__doc__ or "").strip(),
                "requestBody": {"required": True, "content": _json({"$ref": _REF.format(model=body.__name__)})},
                "responses": _responses({**_json({"type": "object"}), **more}),
            }
        }
        for path, (body, more) in posts.items()
    }
    for path, content in (
        ("/v1/models", _json({"type": "object"})),
        ("/health", _json({"type": "object"})),
        ("/live", _json({"type": "object"})),
        ("/metrics", {"text/plain": {"schema": {"type": "string"}}}),
        ("/", {"text/html": {"schema": {"type": "string"}}}),
    ):
        paths[path] = {"get": {"summary": path, "responses": _responses(content)}}
    paths["/health"]["get"]["responses"]["503"] = {"description": "not yet", "content": _json({"type": "object"})}
    paths["/v1/models/{model}"] = {
        "get": {
            "summary": "one model",
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
            "responses": _responses(_json({"type": "object"})),
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headway", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": parts,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _responses(content: dict[str, Any]) -> dict[str, Any]:
    errors = {
        str(status): {"description": "error", "content": _json({"$ref": _REF.format(model="Error")})}
        for status in _ERRORS
    }
    return {"200": {"description": "ok", "content": content}, **errors}
