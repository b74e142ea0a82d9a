"""A soak of mixed requests: answered, streamed, left in the middle, with schemas, refused; nothing grows with time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from http_server import Home, Server
from scipy.stats import theilslopes
from streaming import answer, chunks, vanish

MOST_GROWTH = 1e6
"""Bytes an hour."""
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "boolean"}}}
AT_ONCE = 8


async def one(server: Server, random: np.random.Generator) -> str:
    """One request of a kind by chance; the kind."""
    kind = str(random.choice(["answer", "stream", "leave", "schema", "refused"], p=[0.4, 0.2, 0.2, 0.1, 0.1]))
    body: dict[str, Any] = {
        "model": "tiny",
        "prompt": random.integers(0, 270, int(random.integers(1, 200))).tolist(),
        "max_tokens": int(random.integers(1, 40)),
        "temperature": float(random.choice([0.0, 0.9])),
        "seed": int(random.integers(1 << 30)),
    }
    if kind == "leave":
        body |= {"stream": True, "max_tokens": 200, "ignore_eos": True}
        await vanish(server.port, "/v1/completions", body, int(random.integers(0, 20)), random.uniform(0, 0.05))
        return kind
    if kind == "stream":
        body["stream"] = True
    if kind == "schema":
        body["response_format"] = SCHEMA
    if kind == "refused":
        body["max_tokens"] = -1
    status, text = chunks(await answer(server.port, "/v1/completions", body))
    assert status == (400 if kind == "refused" else 200), text[:500]
    return kind


async def soak(server: Server, seconds: float, least: int) -> dict[str, Any]:
    """Samples of what both processes hold, and how many requests of each kind there were."""
    random = np.random.default_rng(21)
    processes = [psutil.Process(server.process.pid), server.worker]
    counts: dict[str, int] = {}
    samples: list[list[float]] = []
    begin = time.monotonic()

    async def client() -> None:
        while time.monotonic() < begin + seconds or sum(counts.values()) < least:
            kind = await one(server, random)
            counts[kind] = counts.get(kind, 0) + 1

    async def watch() -> None:
        while True:
            held = [p.memory_info().rss for p in processes]
            others = [sum(p.num_fds() for p in processes), sum(p.num_threads() for p in processes)]
            samples.append([time.monotonic() - begin, *held, *others])
            await asyncio.sleep(max(seconds / 200, 0.1))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    watching.cancel()
    return {"counts": counts, "samples": np.array(samples), "processes": processes}


def check(home: Home, seconds: float, least: int, figures: Callable[..., None]) -> np.ndarray[Any, Any]:
    with home.serve("--max-seqs", "8", "--kv-memory", "2MB", "--budget", "ttft<=1000s") as server:
        asyncio.run(soak(server, min(seconds / 10, 60.0), 200))  # caches and pools fill
        before = server.wait_until_quiet()
        handles = [p.num_fds() for p in (psutil.Process(server.process.pid), server.worker)]
        found = asyncio.run(soak(server, seconds, least))
        after = server.wait_until_quiet()
        assert after["held"] == 0 and after["pages"] == before["pages"] and after["restarts"] == 0
        assert all(p.num_fds() <= count + 4 for p, count in zip(found["processes"], handles, strict=True))
        samples = found["samples"]
        threads = samples[:, 4]
        assert threads.max() == threads.min()
        slopes = [float(theilslopes(samples[:, at], samples[:, 0])[0]) * 3600 for at in (1, 2)]
        figures(
            requests=sum(found["counts"].values()), **found["counts"], seconds=samples[-1, 0],
            http_mb_per_hour=slopes[0] / 1e6, worker_mb_per_hour=slopes[1] / 1e6, threads=threads[-1],
        )  # fmt: skip
        return np.array(slopes)


def test_five_hundred_mixed_requests(home: Home, figures: Callable[..., None]) -> None:
    check(home, 8.0, 500, figures)


@pytest.mark.nightly
def test_half_an_hour_of_mixed_requests(home: Home, figures: Callable[..., None]) -> None:
    assert (check(home, 1800.0, 30_000, figures) <= MOST_GROWTH).all()
