"""`Backend`: one model's process, as the HTTP process sees it. It is started, watched, and started again if it dies."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from headway.core.errors import BadInput, HeadwayError, Lacking
from headway.serving.http.errors import lost, unavailable
from headway.serving.messages import (
    Cancel,
    Doing,
    Embed,
    Embedded,
    Failed,
    Frames,
    Ready,
    Setup,
    Stats,
    Stepped,
    Submit,
    Token,
    Training,
    frame,
    from_model,
    start,
)

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Waits before the process is started again, by how often it has failed to start; the last repeats."""
GRACE_S = 2.0
"""How long a process may take to end once its socket is closed."""


class Mailbox:
    """What comes for one HTTP request: the tokens of all its choices, gathered until somebody reads them."""

    __slots__ = ("_error", "_tokens", "_waiter", "ids", "last", "since")

    def __init__(self, ids: Sequence[int], now: float) -> None:
        self.ids = {id: index for index, id in enumerate(ids)}
        self.since = now
        self.last: dict[int, float] = {}
        self._tokens: list[Token] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    async def next(self) -> list[Token]:
        """The tokens since the last call, at least one. Raises what `fail` was given, once there are none."""
        while not self._tokens:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        found, self._tokens = self._tokens, []
        return found

    def put(self, token: Token) -> None:
        self._tokens.append(token)
        self.wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Watcher:
    """Told what happens; the base ignores it."""

    def stepped(self, stats: Stats) -> None:
        """A step is done."""

    def first_token(self, seconds: float) -> None:
        """Since the request was submitted."""

    def next_token(self, seconds: float) -> None:
        """Since the one before."""

    def restarted(self) -> None:
        """The process died."""


class Backend:
    """Serves one model. `ready` is None while there is no process that can answer."""

    def __init__(
        self,
        command: Sequence[str],
        setup: Setup,
        watcher: Watcher | None = None,
        tell: Callable[[Doing], None] = lambda doing: None,
    ) -> None:
        """command: starts a process that speaks `headway.serving.messages` over the descriptor given last."""
        self._command, self._setup, self._tell = list(command), setup, tell
        self._watcher = watcher or Watcher()
        self.ready: Ready | None = None
        self.restarts = 0
        self.stats: Stats | None = None
        self._ids = itertools.count(1)
        self._boxes: dict[int, Mailbox] = {}
        self._vectors: dict[int, asyncio.Future[Embedded]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._failed: HeadwayError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._served = self._ever_served = False

    # Life

    async def start(self) -> Ready:
        """Start the process and wait until it serves. Raises the `HeadwayError` for which it cannot."""
        self._keeper = asyncio.create_task(self._keep())
        while self.ready is None:
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            await self._changed.wait()
        return self.ready

    async def stop(self) -> None:
        """End the process and whatever waits for it."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._end_process()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def _keep(self) -> None:
        """Run one process after the other; return when the first cannot start."""
        tries = 0
        while True:
            self._served = False
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            try:
                await self._spawn(gone)
                await gone
            except Lacking as error:
                self._failed = error
            finally:
                self._lose()
            await self._end_process()
            self._ever_served |= self._served
            if not self._ever_served:
                code = None if self._process is None else self._process.returncode
                self._failed = self._failed or Lacking(
                    f"the engine's process ended with {code} at its start", "see why"
                )
                self._changed.set()
                return
            self.restarts += 1
            self._watcher.restarted()
            tries = 0 if self._served else tries + 1
            await asyncio.sleep(BACKOFF_S[min(tries, len(BACKOFF_S) - 1)])

    async def _spawn(self, gone: asyncio.Future[None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*self._command, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C in a terminal is for the HTTP process alone
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
            except OSError as error:
                ours.close()
                raise Lacking(f"cannot start the engine's process: {error}", "free memory or processes") from None
        ours.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: _Wire(self._received, gone), sock=ours
        )
        self._transport = transport
        transport.write(frame(self._setup))

    async def _end_process(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        process = self._process
        if process is None:
            return
        for _ in range(int(GRACE_S / 0.01)):
            if process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        process.kill()
        process.wait()

    def _lose(self) -> None:
        """Everybody who waits is told at once."""
        self.ready = None
        boxes = {id(box): box for box in self._boxes.values()}
        self._boxes.clear()
        for box in boxes.values():
            box.fail(lost())
        for future in self._vectors.values():
            if not future.done():
                future.set_exception(lost())
        self._vectors.clear()

    # What comes

    def _received(self, body: bytes) -> None:
        if self.ready is None:
            self._starting(start.decode(body))
            return
        message = from_model.decode(body)
        if isinstance(message, Stepped):
            self._stepped(message)
        elif (future := self._vectors.pop(message.id, None)) is not None and not future.done():
            future.set_result(message)

    def _starting(self, message: Doing | Failed | Ready) -> None:
        if isinstance(message, Doing):
            self._tell(message)
        elif isinstance(message, Failed):
            error = Lacking if message.exit_code == Lacking.exit_code else BadInput
            self._failed = error(message.what, message.mend)
        else:
            self.ready = message
            self._served = True
            self._changed.set()

    def _stepped(self, message: Stepped) -> None:
        now = time.monotonic()
        watcher = self._watcher
        for token in message.tokens:
            box = self._boxes.get(token.id)
            if box is None:
                continue
            if token.token is not None:
                before = box.last.get(token.id)
                if before is None:
                    watcher.first_token(now - box.since)
                else:
                    watcher.next_token(now - before)
                box.last[token.id] = now
            if token.finish:
                del self._boxes[token.id]
            box.put(token)
        if message.stats.training is not None:
            self._say(message.stats.training)
        self.stats = message.stats
        watcher.stepped(message.stats)

    def _say(self, training: Training) -> None:
        """A line where a job is over, or has met trouble."""
        before = None if self.stats is None else self.stats.training
        if training.trouble and (before is None or before.trouble != training.trouble):
            self._tell(Doing(training.trouble, note=True))
        elif training.step == training.steps and before is not None and before.step < training.step:
            self._tell(Doing(f"training is done: the adapters are in {self._setup.adapters}", note=True))

    # What is asked

    def submit(self, requests: Sequence[Submit]) -> Mailbox:
        """Send requests (their ids are given here); their tokens come to one mailbox. 503 without a process."""
        if self._transport is None or self.ready is None:
            raise unavailable()
        ids = [next(self._ids) for _ in requests]
        box = Mailbox(ids, time.monotonic())
        data = []
        for id, request in zip(ids, requests, strict=True):
            request.id = id
            self._boxes[id] = box
            data.append(frame(request))
        self._transport.write(b"".join(data))
        return box

    def cancel(self, box: Mailbox, ids: Sequence[int] | None = None) -> None:
        """Nobody waits for these (all) of a mailbox any more."""
        alive = [id for id in (box.ids if ids is None else ids) if self._boxes.pop(id, None) is not None]
        if alive:
            self._send(Cancel(alive))

    async def embed(self, texts: list[str]) -> Embedded:
        if self._transport is None or self.ready is None:
            raise unavailable()
        id = next(self._ids)
        future: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self._vectors[id] = future
        self._send(Embed(id, texts))
        try:
            return await future
        finally:
            self._vectors.pop(id, None)

    @property
    def answers(self) -> int:
        """Answers under way."""
        return len(self._boxes) + len(self._vectors)

    def _send(self, message: Struct) -> None:
        if self._transport is not None:
            self._transport.write(frame(message))


class _Wire(asyncio.Protocol):
    """Splits what comes into messages, and tells when it ends."""

    def __init__(self, received: Callable[[bytes], None], gone: asyncio.Future[None]) -> None:
        self._received, self._gone = received, gone
        self._frames = Frames()

    def data_received(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            self._received(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._gone.done():
            self._gone.set_result(None)


def _has_fileno(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return False
    return True
