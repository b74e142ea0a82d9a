"""Overload: far more than the engine can do arrives; what comes in is done in time, the rest is told when to return."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from http_server import Home, Server
from streaming import answer, chunks

BODY: dict[str, Any] = {"model": "tiny", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
BOUND_S = 0.5


async def ask(server: Server, random: np.random.Generator, found: list[tuple[int, float, bytes]]) -> None:
    begin = time.monotonic()
    body = {**BODY, "prompt": random.integers(0, 270, 200).tolist()}
    status, text = chunks(await answer(server.port, "/v1/completions", body))
    found.append((status, time.monotonic() - begin, text))


async def capacity(server: Server, seconds: float) -> float:
    """Requests a second with as many at work as there are places."""
    random, found = np.random.default_rng(0), []
    end = time.monotonic() + seconds

    async def again() -> None:
        while time.monotonic() < end:
            await ask(server, random, found)

    begin = time.monotonic()
    await asyncio.gather(*(again() for _ in range(8)))
    return sum(status == 200 for status, _, _ in found) / (time.monotonic() - begin)


async def overload(server: Server, rate: float, seconds: float) -> list[tuple[int, float, bytes]]:
    """Arrivals that wait for nobody; at most 128 clients, as there are no more."""
    random, found, gate = np.random.default_rng(1), [], asyncio.Semaphore(128)

    async def one() -> None:
        async with gate:
            await ask(server, random, found)

    tasks, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(random.exponential(1 / rate))
    await asyncio.gather(*tasks)
    return found


def check(home: Home, seconds: float, figures: Callable[..., None]) -> dict[str, Any]:
    """Everybody is answered, no page is lost, memory is flat; the figures."""
    with home.serve("--max-seqs", "8", "--budget", f"ttft<={1e3 * BOUND_S:g}ms") as server:
        asyncio.run(capacity(server, 2.0))
        rate = asyncio.run(capacity(server, 5.0))
        processes = [psutil.Process(server.process.pid), server.worker]
        before = [process.memory_info().rss for process in processes]
        begin = time.monotonic()
        found = asyncio.run(overload(server, 4 * rate, seconds))
        lasted = time.monotonic() - begin
        done = [seconds for status, seconds, _ in found if status == 200]
        away = [(seconds, json.loads(text)) for status, seconds, text in found if status == 429]
        assert len(done) + len(away) == len(found), {status for status, _, _ in found}
        assert done and away
        assert all(reply["error"]["code"] == "queue_full" for _, reply in away)
        grown = [process.memory_info().rss - was for process, was in zip(processes, before, strict=True)]
        state = server.wait_until_quiet()
        assert state["held"] == 0 and state["restarts"] == 0
        told: dict[str, Any] = {
            "capacity_per_s": rate,
            "goodput_per_s": len(done) / lasted,
            "done": len(done),
            "turned_away": len(away),
            "turned_away_p50_ms": 1e3 * float(np.median([s for s, _ in away])),
            "slowest_done_s": max(done),
            "ttft_p99_s": state["ttft"]["p99_s"],
            "grown_mb": max(grown) / 1e6,
        }
        figures(**told)
        assert max(grown) <= 32e6
        return told


def test_a_burst_of_four_times_the_capacity(home: Home, figures: Callable[..., None]) -> None:
    check(home, 6.0, figures)


@pytest.mark.nightly
def test_ten_minutes_of_four_times_the_capacity(home: Home, figures: Callable[..., None]) -> None:
    told = check(home, 600.0, figures)
    assert told["goodput_per_s"] >= 0.95 * told["capacity_per_s"]
    assert told["ttft_p99_s"] <= 2 * BOUND_S
