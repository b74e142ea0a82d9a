"""`Connection`: uvicorn's HTTP protocol with caps: on headers, on the time they take, on how many are open."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headway.serving.http.errors import ApiError

MOST_HEADER_BYTES = 32 << 10
HEADERS_S = 10.0
"""From the first byte of a request (or the connection) to the end of its headers."""
MOST_CONNECTIONS = 2048


class Connection(HttpToolsProtocol):
    """One client's connection."""

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _in_headers = True
    _seen = 0
    """Requests whose headers have come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(ApiError(503, "too many connections are open; try again shortly", retry_after_s=1))
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self.transport.is_closing():
            return
        if self._in_headers:
            room = MOST_HEADER_BYTES - self._header_bytes
            self._header_bytes += len(data)
            if len(data) > room:  # the rest may be a body, or not
                seen = self._seen
                super().data_received(data[:room])
                if self.parser is None or self.transport.is_closing():
                    return
                if self._seen == seen:
                    self._refuse(ApiError(431, f"the headers are larger than {MOST_HEADER_BYTES} bytes"))
                    return
                data = data[room:]
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self.scope["headway.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]
        self._await_headers()

    def on_headers_complete(self) -> None:
        self._in_headers, self._header_bytes = False, 0
        self._seen += 1
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers = True

    def _await_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADERS_S, self._late)

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(ApiError(408, f"the request's headers did not come within {HEADERS_S:.0f} s"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "this is no HTTP request that can be read"))

    def _refuse(self, error: ApiError) -> None:
        self._stop_timer()
        body = error.body()
        status = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
        head = (
            f"HTTP/1.1 {error.status} {status.get(error.status, 'Service Unavailable')}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
