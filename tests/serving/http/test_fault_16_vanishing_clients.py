"""Vanishing clients: streams reset at a random token, while they queue or prefill; every page comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from http_server import Home, Server
from streaming import answer, chunks, vanish


def body(random: np.random.Generator) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": random.integers(0, 270, int(random.integers(1, 700))).tolist(),
        "max_tokens": 300,
        "stream": True,
        "ignore_eos": True,
        "n": int(random.choice([1, 1, 2])),
    }


async def storm(server: Server, count: int, at_once: int) -> int:
    random, gate = np.random.default_rng(1), asyncio.Semaphore(at_once)
    cases = [(body(random), int(random.choice([0, 0, 1, 3, 10, 40])), random.uniform(0, 0.2)) for _ in range(count)]

    async def one(asked: dict[str, Any], after: int, wait_s: float) -> bool:
        async with gate:
            return await vanish(server.port, "/v1/completions", asked, after, wait_s)

    return sum(await asyncio.gather(*(one(*case) for case in cases)))


def check(home: Home, count: int, at_once: int, figures: Callable[..., None]) -> None:
    with home.serve("--max-seqs", "8", "--kv-memory", "500kB", "--budget", "ttft<=1000s") as server:
        start = server.wait_until_quiet()
        worker = server.worker
        asyncio.run(storm(server, max(count // 4, 20), at_once))
        server.wait_until_quiet()
        before = [psutil.Process(server.process.pid).memory_info().rss, worker.memory_info().rss]
        handles = psutil.Process(server.process.pid).num_fds()
        came = asyncio.run(storm(server, count, at_once))
        after = server.wait_until_quiet()
        grown = [
            now.memory_info().rss - was
            for now, was in zip((psutil.Process(server.process.pid), worker), before, strict=True)
        ]
        assert after["pages"] == start["pages"] and after["held"] == 0
        assert after["vanished"] >= count // 2
        assert after["restarts"] == 0 and server.worker.pid == worker.pid
        assert psutil.Process(server.process.pid).num_fds() <= handles + 4
        status, text = chunks(
            asyncio.run(answer(server.port, "/v1/completions", {"model": "tiny", "prompt": "the", "max_tokens": 4}))
        )
        assert status == 200, text
        figures(
            vanished=after["vanished"], came_so_far=came, http_grown_mb=grown[0] / 1e6, worker_grown_mb=grown[1] / 1e6
        )
        assert max(grown) <= 4e6 + 1e3 * count


def test_two_hundred_clients_vanish(home: Home, figures: Callable[..., None]) -> None:
    check(home, 200, 24, figures)


@pytest.mark.nightly
def test_two_thousand_clients_vanish(home: Home, figures: Callable[..., None]) -> None:
    check(home, 2000, 48, figures)
