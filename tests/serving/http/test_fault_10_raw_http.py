"""Raw HTTP: malformed, endless and dribbled messages cost little memory and no stream beside them its rhythm."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable

import psutil
import pytest
from http_server import Home, Server
from streaming import answer, chunks, request

ROOM_BYTES = 32 << 20
GOOD = {"model": "tiny", "prompt": "the", "max_tokens": 4}


def malformed(generator: random.Random, port: int) -> bytes:
    """One message that breaks a rule of HTTP, or bends it."""
    good = request(port, "/v1/completions", GOOD)
    head, _, body = good.partition(b"\r\n\r\n")
    kind = generator.randrange(14)
    if kind == 0:
        return generator.randbytes(generator.randrange(1, 400))
    if kind == 1:  # bytes changed anywhere in the head
        data = bytearray(good)
        for _ in range(generator.randrange(1, 6)):
            data[generator.randrange(len(head))] = generator.randrange(256)
        return bytes(data)
    if kind == 2:
        return good[: generator.randrange(len(good))]
    if kind == 3:
        return head + b"\r\nX-Long: " + b"a" * generator.choice((1 << 10, 1 << 16, 1 << 20)) + b"\r\n\r\n" + body
    if kind == 4:
        return head + b"".join(b"\r\nX-%d: y" % at for at in range(generator.choice((10, 5000)))) + b"\r\n\r\n" + body
    if kind == 5:
        return head.replace(b"Content-Length: ", b"Content-Length: 2000000000") + b"\r\n\r\n" + body
    if kind == 6:
        return head.replace(b"Content-Length: ", b"Content-Length: -") + b"\r\n\r\n" + body
    if kind == 7:
        return head + b"\r\nContent-Length: 3\r\n\r\n" + body
    if kind == 8:
        return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    if kind == 9:
        bad = generator.choice((b"zz\r\n", b"ffffffffffffffffff\r\n", b"-5\r\n", b"5;x=" + b"y" * 70_000 + b"\r\n"))
        return (
            head.replace(b"Content-Length", b"X-Length") + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + bad + b"a" * 64
        )
    if kind == 10:
        return good.replace(b"HTTP/1.1", generator.choice((b"HTTP/9.9", b"HTTP/1.0", b"FTP/1.1", b"")))
    if kind == 11:
        return head + b"\r\n\r\n" + generator.randbytes(len(body))
    if kind == 12:
        return good.replace(b"Connection: close", b"Connection: keep-alive") * generator.randrange(2, 6)  # pipelined
    return good.replace(
        b"POST /v1/completions", generator.choice((b"GET /%ff%00", b"OPTIONS *", b"BREW /", b"GET " + b"/" * 70_000))
    )


async def send(port: int, data: bytes) -> bytes:
    """What comes back before the server closes, or in a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        reply = asyncio.create_task(reader.read())
        await asyncio.wait({reply}, timeout=0.3)
        if not reply.done() and not writer.transport.is_closing():
            writer.write_eof()  # nothing more comes: no need to wait for the server's patience to end
        async with asyncio.timeout(20):
            return await reply
    except (ConnectionError, TimeoutError):
        return b""
    finally:
        writer.transport.abort()


async def messages(port: int, count: int) -> dict[str, int]:
    generator, statuses, gate = random.Random(3), {}, asyncio.Semaphore(16)

    async def one(data: bytes) -> None:
        async with gate:
            reply = await send(port, data)
        status = reply.split(b" ", 2)[1].decode() if reply.startswith(b"HTTP/1.1 ") else "closed"
        assert status == "closed" or status in ("200", "400", "403", "404", "405", "408", "413", "415", "431", "429"), (
            reply[:200]
        )
        statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(one(malformed(generator, port)) for _ in range(count)))
    return statuses


def check(home: Home, count: int, figures: Callable[..., None]) -> None:
    with home.serve("--budget", "ttft<=1000s") as server:
        process = psutil.Process(server.process.pid)
        asyncio.run(messages(server.port, 100))
        before = process.memory_info().rss
        statuses = asyncio.run(messages(server.port, count))
        grown = process.memory_info().rss - before
        assert server.ask("/v1/completions", GOOD).status_code == 200
        state = server.wait_until_quiet()
        assert state["restarts"] == 0
        figures(messages=count, grown_mb=grown / 1e6, statuses=statuses)
        assert grown <= ROOM_BYTES


def test_a_thousand_malformed_messages(home: Home, figures: Callable[..., None]) -> None:
    check(home, 1000, figures)


@pytest.mark.nightly
def test_twenty_thousand_malformed_messages(home: Home, figures: Callable[..., None]) -> None:
    check(home, 20_000, figures)


async def loris(port: int, count: int, seconds: float) -> int:
    """Sockets that send a byte each second; how many the server has closed at the end."""
    pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
    text = request(port, "/v1/completions", GOOD)
    end = time.monotonic() + seconds
    at = 0
    while time.monotonic() < end:
        for _, writer in pairs:
            if not writer.transport.is_closing():
                writer.write(text[at : at + 1])
        at += 1
        await asyncio.sleep(1.0)
    closed = 0
    for reader, writer in pairs:
        closed += reader.at_eof() or writer.transport.is_closing()
        writer.transport.abort()
    return closed


async def beside(server: Server, count: int, seconds: float) -> tuple[int, bytes]:
    dribble = asyncio.create_task(loris(server.port, count, seconds))
    await asyncio.sleep(2.0)
    reply = await answer(
        server.port, "/v1/completions", {**GOOD, "max_tokens": 300, "stream": True, "ignore_eos": True}
    )
    return await dribble, reply


def test_those_who_dribble_are_closed_while_others_are_served(home: Home, figures: Callable[..., None]) -> None:
    with home.serve() as server:
        closed, reply = asyncio.run(beside(server, 100, 14.0))
        status, text = chunks(reply)
        assert status == 200 and text.endswith(b"data: [DONE]\n\n")
        assert closed == 100
        figures(dribbling=100, closed=closed)


def test_a_body_of_tiny_chunks_is_capped_as_it_comes(home: Home, figures: Callable[..., None]) -> None:
    """50 MB announced in chunks of 6 bytes: refused after the cap, whatever it says of itself."""

    async def pour(port: int) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece, sent = b"6\r\naaaaaa\r\n" * 2000, 0
        reply = asyncio.create_task(reader.read(4096))
        try:
            while sent < 50_000_000 and not reply.done():
                writer.write(piece)
                await writer.drain()
                sent += 12_000
            async with asyncio.timeout(20):
                return sent, await reply
        except (ConnectionError, TimeoutError):
            return sent, b""
        finally:
            reply.cancel()
            writer.transport.abort()

    with home.serve() as server:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        sent, reply = asyncio.run(pour(server.port))
        assert sent < 50_000_000 and (not reply or reply.startswith(b"HTTP/1.1 413"))
        assert process.memory_info().rss - before <= ROOM_BYTES
        assert json.loads(server.ask("/health").text) == {"status": "ok"}
        figures(taken_mb=sent / 1e6)
