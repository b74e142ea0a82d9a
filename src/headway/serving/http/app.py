"""The routes, and the one place where an error becomes an answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from headway.serving.http import completions, embeddings
from headway.serving.http.bodies import Body, ChatBody, CompletionBody, EmbeddingBody, parse
from headway.serving.http.errors import ApiError, internal, unavailable
from headway.serving.http.guard import Guard, Names
from headway.serving.http.keys import Keys
from headway.serving.http.live import snapshot
from headway.serving.http.metrics import Collector, Record
from headway.serving.http.openapi import document
from headway.serving.http.reply import Reply
from headway.serving.http.served import Served

B = TypeVar("B", bound=Body)
PAGE = Path(__file__).with_name("live.html")
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Site:
    """All that the routes share."""

    def __init__(self, models: Mapping[str, Served], records: Mapping[str, Record], *, salted: bool) -> None:
        """salted: prompts share pages only with prompts under the same key."""
        self.models, self.records, self._salted = dict(models), dict(records), salted
        self.draining = False
        self.begun = time.time()

    def app(self, keys: Keys, names: Names) -> ASGIApp:
        starlette = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/v1/models", self.list_models, methods=["GET"]),
                Route("/v1/models/{model:path}", self.show_model, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                Route("/live", self.live, methods=["GET"]),
                Route("/openapi.json", self.openapi, methods=["GET"]),
                Route("/", self.page, methods=["GET"]),
            ],
            exception_handlers={ApiError: _told, HTTPException: _http, ClientDisconnect: _gone, Exception: _failed},
        )
        starlette.router.redirect_slashes = False
        self.routes = starlette.routes
        return Guard(starlette, keys, names)

    async def chat(self, request: Request) -> Reply:
        body = await self._body(request, ChatBody)
        return await self._language(request, body.model, lambda served, salt: completions.chat(served, body, salt))

    async def complete(self, request: Request) -> Reply:
        body = await self._body(request, CompletionBody)
        return await self._language(request, body.model, lambda served, salt: completions.complete(served, body, salt))

    async def embed(self, request: Request) -> Response:
        body = await self._body(request, EmbeddingBody)
        return await embeddings.embed(self._model(body.model, "embedding"), body)

    async def _body(self, request: Request, kind: type[B]) -> B:
        if self.draining:
            raise unavailable("the server is shutting down")
        mime = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if mime != "application/json":
            raise ApiError(415, "send the body as application/json")
        return parse(await request.body(), kind)

    async def _language(self, request: Request, name: str, work: Callable[[Served, str], Awaitable[Reply]]) -> Reply:
        served = self._model(name, "language")
        try:
            return await work(served, request.scope["headway.holder"] if self._salted else "")
        except ApiError as error:
            self.records[name].refused += error.status == 429
            raise

    def _model(self, name: str, task: str | None = None) -> Served:
        served = self.models.get(name)
        if served is None or task not in (None, served.task):
            known = [n for n, s in self.models.items() if task in (None, s.task)]
            what = f"no {task or ''} model {name!r:.100} here".replace("  ", " ")
            mend = f"models are: {', '.join(known)}" if known else "none of that kind is served"
            raise ApiError(404, f"{what}; {mend}", param="model", code="model_not_found")
        return served

    async def list_models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._described(name) for name in self.models]})

    async def show_model(self, request: Request) -> Response:
        self._model(request.path_params["model"])
        return _json(self._described(request.path_params["model"]))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": int(self.begun), "owned_by": "headway"}

    async def health(self, request: Request) -> Response:
        ready = all(served.backend.ready is not None for served in self.models.values())
        status = "draining" if self.draining else "ok" if ready else "starting"
        return _json({"status": status}, 200 if status == "ok" else 503)

    async def metrics(self, request: Request) -> Response:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(self.models, self.records))
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def live(self, request: Request) -> Response:
        return _json(snapshot(self.models, self.records, self.draining, time.time() - self.begun))

    async def openapi(self, request: Request) -> Response:
        return _json(document())

    async def page(self, request: Request) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html; charset=utf-8", headers=_PAGE_HEADERS)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, {"cache-control": "no-store"}, "application/json")


def _answer(error: ApiError) -> Response:
    return Response(error.body(), error.status, error.headers, "application/json")


async def _told(request: Request, error: Any) -> Response:
    return _answer(error)


async def _http(request: Request, error: Any) -> Response:
    messages = {404: f"no route {request.url.path:.200}", 405: f"{request.method} is not allowed here"}
    message = messages.get(error.status_code, "the request cannot be answered")
    return _answer(ApiError(error.status_code, message, headers=dict(error.headers or {})))


async def _gone(request: Request, error: Any) -> Response:
    return Response(status_code=499)


async def _failed(request: Request, error: Any) -> Response:
    return _answer(internal())
