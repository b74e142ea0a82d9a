"""Drain and death: SIGTERM lets streams finish, a killed engine is told of within a second and comes back, and
nothing outlives the server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import psutil
import pytest
from http_server import Home, Server
from streaming import answer, chunks

STREAMS = 32
BODY = {"model": "tiny", "prompt": "the thing", "max_tokens": 400, "stream": True, "ignore_eos": True}


def open_streams(
    server: Server, count: int, body: dict[str, Any] = BODY
) -> tuple[list[bytes], list[float], threading.Thread]:
    """Streams running in a thread: their replies and when each ended, once the thread is joined."""
    replies: list[bytes] = []
    ends: list[float] = []

    async def one() -> None:
        reply = await answer(server.port, "/v1/completions", body)
        ends.append(time.monotonic())
        replies.append(reply)

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(count)))

    thread = threading.Thread(target=lambda: asyncio.run(all_of_them()))
    thread.start()
    until = time.monotonic() + 60
    while server.live()["decoding"] < min(count, 8):
        assert time.monotonic() < until
        time.sleep(0.01)
    return replies, ends, thread


def drain(home: Home, count: int) -> int:
    """SIGTERM with streams open: all end whole, the server ends with 0. Gives the number of streams."""
    with home.serve("--budget", "ttft<=1000s") as server:
        worker = server.worker
        replies, _, thread = open_streams(server, count)
        server.process.send_signal(signal.SIGTERM)
        thread.join(120)
        assert server.process.wait(60) == 0
        for reply in replies:
            status, text = chunks(reply)
            assert status == 200 and text.endswith(b"data: [DONE]\n\n") and b'"finish_reason":"length"' in text
        assert not worker.is_running()
    return len(replies)


def test_sigterm_lets_every_stream_finish(home: Home, figures: Callable[..., None]) -> None:
    figures(streams=drain(home, STREAMS))


def test_what_takes_too_long_to_drain_ends_with_an_error(home: Home) -> None:
    with home.serve("--budget", "ttft<=1000s", "--drain", "300ms", "--max-seqs", "2") as server:
        replies, _, thread = open_streams(server, 2, {**BODY, "max_tokens": 1000, "n": 8})
        server.process.send_signal(signal.SIGTERM)
        thread.join(60)
        assert server.process.wait(60) == 0
        for reply in replies:
            status, text = chunks(reply)
            assert text.endswith(b"data: [DONE]\n\n") if status == 200 else status == 503
        assert any(b"shutting down" in reply for reply in replies)


def death(server: Server) -> tuple[float, float]:
    """Kill the engine's process: (seconds until the last stream was told, until health is good again)."""
    replies, ends, thread = open_streams(server, 8, {**BODY, "max_tokens": 1000})
    killed = server.worker
    begin = time.monotonic()
    killed.kill()
    statuses = []
    while not statuses or statuses[-1] != 200 or 503 not in statuses:
        statuses.append(server.ask("/health").status_code)
        assert time.monotonic() < begin + 60, statuses[-1]
        time.sleep(0.01)
    healthy = time.monotonic() - begin
    thread.join(60)
    for reply in replies:
        status, text = chunks(reply)
        if status == 200:
            assert b'"engine_restarted"' in text and text.endswith(b"data: [DONE]\n\n")
        else:
            assert status == 503 and b'"error"' in text
    assert server.worker.pid != killed.pid
    return max(ends) - begin, healthy


def kill_often(home: Home, times: int, figures: Callable[..., None]) -> None:
    with home.serve("--budget", "ttft<=1000s") as server:
        said = server.ask(
            "/v1/completions", {"model": "tiny", "prompt": "the", "max_tokens": 8, "temperature": 0}
        ).json()
        found = [death(server) for _ in range(times)]
        again = server.ask(
            "/v1/completions", {"model": "tiny", "prompt": "the", "max_tokens": 8, "temperature": 0}
        ).json()
        assert again["choices"] == said["choices"]
        assert server.live()["restarts"] == times
        told, healthy = (max(column) for column in zip(*found, strict=True))
        figures(kills=times, told_s=told, healthy_s=healthy)
        assert told <= 1.0


def test_a_killed_engine_is_told_of_and_comes_back(home: Home, figures: Callable[..., None]) -> None:
    kill_often(home, 2, figures)


def test_nothing_outlives_a_killed_server(home: Home) -> None:
    with home.serve() as server:
        worker = server.worker
        _, _, thread = open_streams(server, 2, {**BODY, "max_tokens": 1000})
        server.process.kill()
        server.process.wait()
        worker.wait(10)
        thread.join(60)
    assert not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_gives_130(home: Home) -> None:
    with home.serve() as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130


def test_a_model_that_cannot_be_served_ends_it_with_one_line(home: Home) -> None:
    words = [word if word != str(home.model) else "no-such-model" for word in home.command("--port", "0")]
    run = subprocess.run(words, env=home.environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.splitlines()[-1].startswith("headway: no model 'no-such-model'")
    taken = home.serve()
    with taken as server:
        run = subprocess.run(
            home.command("--port", str(server.port)), env=home.environment, capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 2 and "cannot listen" in run.stderr


def test_requests_while_the_engine_starts_again_are_told_to_come_back(home: Home) -> None:
    with home.serve() as server:
        server.worker.kill()
        until = time.monotonic() + 60
        seen: set[int] = set()
        while seen != {200, 503}:
            reply = server.ask("/v1/completions", {"model": "tiny", "prompt": "the", "max_tokens": 2})
            seen.add(reply.status_code)
            if reply.status_code == 503:
                assert reply.headers["retry-after"] and "error" in reply.json()
            assert time.monotonic() < until
    with pytest.raises(httpx2.HTTPError):
        server.ask("/health")


@pytest.mark.nightly
def test_a_hundred_drains_and_a_hundred_deaths(home: Home, figures: Callable[..., None]) -> None:
    figures(streams=sum(drain(home, STREAMS) for _ in range(100)))
    kill_often(home, 100, figures)
