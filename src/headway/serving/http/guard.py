"""`Guard`: the one door. It denies by default: who asks, from which page, under which name, and how much.

Every route needs a key (where there are keys), only `OPEN` ones do not; a route that nobody thought of is closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.serving.http.errors import ApiError
from headway.serving.http.keys import Keys, given_key

OPEN = frozenset({"/health"})
"""Served without a key."""
BROWSED = frozenset({"/", "/live", "/metrics"})
"""A browser may give the key as a password here."""
MOST_BODY = 1 << 20
"""Bytes: a context of 128 thousand tokens fits, whether as text or as ids."""
BODY_IDLE_S = 10.0
BODY_TOTAL_S = 60.0
_HOST = re.compile(r"(\[[0-9a-f:.%]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True)
class Names:
    """The names under which this server may be asked: a page that points its own name here gets nothing."""

    allowed: frozenset[str]
    any_address: bool
    """Addresses in digits are allowed: no page can own one."""

    @classmethod
    def of(cls, host: str, more: Sequence[str] = ()) -> Names:
        names = {"localhost", "127.0.0.1", "[::1]", host.lower(), *(name.lower() for name in more)}
        if not is_loopback(host):
            names.add(socket.gethostname().lower())
        return cls(frozenset(names), not is_loopback(host))

    def holds(self, header: str) -> bool:
        found = _HOST.fullmatch(header.lower())
        if found is None:
            return False
        name = found[1]
        if name in self.allowed:
            return True
        if not self.any_address:
            return False
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """The outermost ASGI layer. A key's holder is `scope["headway.holder"]` afterwards ("" without keys)."""

    def __init__(self, app: ASGIApp, keys: Keys, names: Names) -> None:
        self._app, self._keys, self._names = app, keys, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            scope["headway.holder"] = self._check(scope)
            scope["headway.send"] = send
        except ApiError as error:
            await send_error(error, send)
            return
        await self._app(scope, Bounded(receive).receive, send)

    def _check(self, scope: Scope) -> str:
        """Raises `ApiError` for a request that may not come in."""
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in (b"host", b"origin", b"authorization", b"content-length"):
                raise ApiError(400, f"more than one {name.decode()} header")
            headers[name] = value
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._names.holds(host):
            raise ApiError(403, "this server is not known under that Host", code="bad_host")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            raise ApiError(403, "requests from other web pages are refused", code="bad_origin")
        path = scope["path"]
        length = headers.get(b"content-length")
        if length is not None and not (length.isdigit() and len(length) < 18 and int(length) <= MOST_BODY):
            raise _too_large()
        if path in OPEN or not self._keys:
            return ""
        basic = path in BROWSED and scope["method"] in ("GET", "HEAD")
        given = given_key(headers.get(b"authorization"), basic)
        holder = None if given is None else self._keys.holder(given)
        if holder is None:
            ask = 'Basic realm="headway: the API key as password"' if basic else "Bearer"
            what = "no API key was given" if given is None else "the API key is wrong"
            message = f"{what}; send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": ask})
        return holder


class Bounded:
    """Counts what is received: a body has a size and a time."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0
        self._whole = False
        self._until = 0.0

    async def receive(self) -> Message:
        """Raises 413 and 408."""
        if self._whole:  # waiting for the client to hang up takes as long as it takes
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._until = self._until or now + BODY_TOTAL_S
        try:
            async with asyncio.timeout(min(BODY_IDLE_S, max(self._until - now, 0.0))):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "the request's body did not come in time", headers={"connection": "close"}) from None
        self._size += len(message.get("body", b""))
        if self._size > MOST_BODY:
            raise _too_large()
        self._whole = message["type"] == "http.request" and not message.get("more_body", False)
        return message


def _too_large() -> ApiError:
    return ApiError(413, f"the request's body is larger than {MOST_BODY} bytes", headers={"connection": "close"})


async def send_error(error: ApiError, send: Send) -> None:
    """An error as a whole response."""
    body = error.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
