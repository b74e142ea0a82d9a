"""`Channel`: the model process's end of its socket. It never waits for the other side to read."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

from msgspec import Struct

from headway.serving.messages import Frames, frame

READ_BYTES = 1 << 20


class Closed(Exception):
    """The HTTP process is gone."""


class Channel:
    """Messages over a stream socket. What the other side does not take yet waits in memory."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._frames = Frames()
        self._out = bytearray()
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)

    def receive(self, timeout_s: float | None = 0.0) -> Sequence[bytes]:
        """The bodies that have come, waiting up to `timeout_s` (None: for ever) for the first. Raises `Closed`."""
        if timeout_s != 0.0:
            self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
            self._poll.poll(None if timeout_s is None else timeout_s * 1e3)
        if self._out:
            self._flush()
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return ()
        except ConnectionError:
            raise Closed from None
        if not data:
            raise Closed
        return self._frames.feed(data)

    def send(self, message: Struct) -> None:
        """Raises `Closed`."""
        self._out += frame(message)
        self._flush()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            return
        except ConnectionError:
            raise Closed from None
        del self._out[:sent]
