"""`Reply`: one request's answer, whole or as a stream of events; it gives everything back however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from starlette.types import Message, Receive, Scope, Send

from headway.serving.http.answers import Choice, Piece
from headway.serving.http.errors import ApiError
from headway.serving.http.formats import DONE, Writer, error_event
from headway.serving.http.served import Served
from headway.serving.messages import Submit

TOTAL_S = 900.0
"""The longest that one reply may take."""
STUCK_S = 30.0
"""How long a client may take nothing of what it is sent."""
LOOK_S = 5.0
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
_JSON = [(b"content-type", b"application/json")]


class _Gone(Exception):
    """The client has gone away."""


class Reply:
    """An ASGI response. prompts: tokens of the prompts, for the count of them."""

    def __init__(
        self,
        served: Served,
        requests: Sequence[Submit],
        prompt_tokens: int,
        writer: Writer,
        stops: tuple[str, ...],
        *,
        stream: bool,
        usage: bool,
    ) -> None:
        self._served, self._requests, self._prompt_tokens = served, requests, prompt_tokens
        self._writer, self._stream, self._usage = writer, stream, usage
        ready = served.ready
        self._choices = [Choice(served.tokenizer, ready.eos, stops, request.ignore_end) for request in requests]
        self._left = len(self._choices)
        self._sending_since = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `ApiError` only before the response has begun."""
        served = self._served
        tickets = [served.admission.enter(len(request.tokens), request.max_tokens) for request in self._requests]
        try:
            box = served.backend.submit(self._requests)
        except ApiError:
            for ticket in tickets:
                served.admission.leave(ticket)
            raise
        self._box, self._tickets = box, tickets
        served.open.add(self)
        watch = asyncio.create_task(self._watch(receive, scope))
        try:
            async with asyncio.timeout(TOTAL_S):
                await (self._events(send, scope["headway.send"]) if self._stream else self._whole(send))
        except TimeoutError:
            late = ApiError(408, f"the answer took longer than {TOTAL_S:.0f} s", code="timeout")
            await self._end_early(late, scope["headway.send"])
        except _Gone:
            served.vanished += 1
        finally:
            watch.cancel()
            served.open.discard(self)
            served.backend.cancel(box)
            for ticket in tickets:
                served.admission.leave(ticket)
            served.count(self._prompt_tokens, sum(choice.tokens for choice in self._choices))

    def interrupt(self, error: ApiError) -> None:
        """End it now, with this error."""
        self._box.fail(error)

    async def _next(self) -> dict[int, Piece]:
        """What is new, by choice."""
        tokens = await self._box.next()
        found: dict[int, Piece] = {}
        for token in tokens:
            index = self._box.ids[token.id]
            choice = self._choices[index]
            if choice.finish is not None:
                continue
            piece = found.get(index)
            if piece is None:
                piece = found[index] = Piece()
            choice.take(token, piece)
            if token.token is not None:
                self._served.admission.token(self._tickets[index])
            if choice.finish is not None:
                self._left -= 1
                if choice.stopped:
                    self._served.backend.cancel(self._box, [token.id])
                self._served.admission.leave(self._tickets[index])
        return found

    async def _whole(self, send: Send) -> None:
        pieces = [Piece() for _ in self._choices]
        while self._left:
            for index, new in (await self._next()).items():
                pieces[index].text += new.text
                pieces[index].told += new.told
        choices = [(p.text, p.told, c.finish or "stop") for p, c in zip(pieces, self._choices, strict=True)]
        body = self._writer.document(choices, self._prompt_tokens, sum(choice.tokens for choice in self._choices))
        await send({"type": "http.response.start", "status": 200, "headers": [*_JSON, _length(body)]})
        await send({"type": "http.response.body", "body": body})

    async def _events(self, send: Send, send_now: Send) -> None:
        """send_now: the server's own, without what the application has put around it."""
        writer, begun = self._writer, False
        seen: set[int] = set()
        try:
            while self._left:
                parts = []
                for index, new in (await self._next()).items():
                    if index not in seen:
                        seen.add(index)
                        parts.append(writer.first(index))
                    if new.text or new.told:
                        parts.append(writer.piece(index, new.text, new.told))
                    if (finish := self._choices[index].finish) is not None:
                        parts.append(writer.last(index, finish))
                if not self._left:
                    if self._usage:
                        tokens = sum(choice.tokens for choice in self._choices)
                        parts.append(writer.usage(self._prompt_tokens, tokens))
                    parts.append(DONE)
                if not begun:  # errors before the first token keep their status
                    begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
                if parts:
                    await self._send(send_now, b"".join(parts), more=self._left > 0)
        except ApiError as error:
            if not begun:
                raise
            await self._send(send_now, error_event(error.body()), more=False)

    async def _send(self, send: Send, body: bytes, more: bool) -> None:
        self._sending_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending_since = 0.0

    async def _end_early(self, error: ApiError, send: Send) -> None:
        if not self._stream:
            raise error
        with suppress(Exception):
            await self._send(send, error_event(error.body()), more=False)

    async def _watch(self, receive: Receive, scope: Scope) -> None:
        """Notice a client that hangs up, or that takes nothing."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    message: Message = await receive()
                if message["type"] == "http.disconnect":
                    break
            except TimeoutError:
                if self._sending_since and loop.time() - self._sending_since > STUCK_S:
                    scope.get("headway.abort", lambda: None)()
                    break
        self._served.backend.cancel(self._box)
        self._box.fail(_Gone())


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()
