"""Raw clients for fault tests: many at once, which may leave in the middle."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any


def request(port: int, path: str, body: Mapping[str, Any]) -> bytes:
    """A whole POST as bytes."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


def reset(writer: asyncio.StreamWriter) -> None:
    """Close at once with a reset, as a client that is killed does."""
    end = writer.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def answer(port: int, path: str, body: Mapping[str, Any], limit_s: float = 120.0) -> bytes:
    """Everything that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request(port, path, body))
        async with asyncio.timeout(limit_s):
            return await reader.read()
    finally:
        writer.close()


async def vanish(port: int, path: str, body: Mapping[str, Any], after: int, wait_s: float = 0.0) -> bool:
    """Reset the connection after so many events (0: `wait_s` after asking); whether it had come so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(port, path, body))
    await writer.drain()
    seen = 0
    if after:
        while seen < after:
            data = await reader.read(65536)
            if not data:
                break
            seen += data.count(b"data: ")
    else:
        await asyncio.sleep(wait_s)
    reset(writer)
    return seen >= after


def chunks(reply: bytes) -> tuple[int, bytes]:
    """(status, body) of a response, whose chunks are joined."""
    head, _, rest = reply.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" not in head.lower():
        return status, rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if not size or int(size, 16) == 0:
            break
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return status, body
