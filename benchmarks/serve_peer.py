"""`headway serve` beside llama.cpp's `llama-server`: same file, threads and clients, round by round; exit 1: missed.

    python benchmarks/serve_peer.py --llama-server PATH [MODEL] [--recipe R] [--peer-file F.gguf] [--rounds 3] [--json]

Three loads of streaming clients, each of 256 prompt tokens and 64 of answer: eight at once; arrivals that wait for
nobody at 70 % of the peer's own capacity; eight at once whose first 128 tokens are shared. Bars: tokens/s, mean time
to the first token, 99th percentile of the time between tokens; and the first token comes sooner with a shared prefix.
The server llama-server is built from llama.cpp's sources: `cmake --build build --target llama-server`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

import headway
from headway.llm.language_model import LanguageModel

CLIENTS, PROMPT, SHARED, ANSWER = 8, 256, 128, 64
OPEN_LOAD = 0.7
OPEN_REQUESTS = 24
RATE, TTFT, GAP = 1.6, 0.5, 0.7
"""The bars: tokens/s at least, mean time to the first token and 99th percentile between tokens at most."""


@dataclass(frozen=True)
class Server:
    name: str
    port: int


@dataclass
class Load:
    """What the clients of one round saw, in seconds."""

    seconds: float = 0.0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "tok_s": self.tokens / self.seconds,
            "ttft_mean_s": float(np.mean(self.first)),
            "tbt_p50_s": float(np.quantile(self.gaps, 0.5)),
            "tbt_p99_s": float(np.quantile(self.gaps, 0.99)),
        }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server that answers /health until the block ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            until = time.monotonic() + 300
            while not asyncio.run(healthy(port)):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"{command[0]} did not start:\n{log.read().decode()[-2000:]}")
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            process.wait(60)


async def healthy(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = await reader.read()
        writer.close()
    except OSError:
        return False
    return b" 200 " in reply.split(b"\r\n", 1)[0]


async def client(server: Server, prompt: list[int], load: Load) -> None:
    """One streamed completion. Gaps are between pieces of text: a token that ends no character comes with another."""
    body = {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "stream": True, "ignore_eos": True}
    body |= {"model": server.name, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    last, made = 0.0, 0
    try:
        while line := await reader.readline():
            now = time.perf_counter()
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                sys.exit(f"{server.name}: {(line + await reader.read()).decode()[:500]}")
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            made = (piece.get("usage") or {}).get("completion_tokens", made)
            if not any(choice["text"] for choice in piece["choices"]):
                continue  # how it ended, or what it used
            if last:
                load.gaps.append(now - last)
            else:
                load.first.append(now - begin)
            last = now
    finally:
        writer.close()
    if made != ANSWER or not last:
        sys.exit(f"{server.name}: {made} of {ANSWER} tokens came")
    load.tokens += PROMPT + ANSWER


async def run(server: Server, prompts: list[list[int]], arrivals: Sequence[float]) -> Load:
    load = Load()

    async def one(prompt: list[int], at: float) -> None:
        await asyncio.sleep(at)
        await client(server, prompt, load)

    begin = time.perf_counter()
    await asyncio.gather(*(one(p, at) for p, at in zip(prompts, arrivals, strict=True)))
    load.seconds = time.perf_counter() - begin
    return load


def prompts(count: int, vocab: int, seed: int, shared: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    first = random.integers(0, vocab, shared).tolist()
    return [first + random.integers(0, vocab, PROMPT - shared).tolist() for _ in range(count)]


def measure(servers: Sequence[Server], vocab: int, rounds: int, seed: int) -> dict[str, dict[str, list[Load]]]:
    """Load -> server -> a run for each round; the order of servers turns."""
    found: dict[str, dict[str, list[Load]]] = {}

    def note(load: str, server: Server, run: Load) -> None:
        found.setdefault(load, {}).setdefault(server.name, []).append(run)

    for server in servers:  # warm
        asyncio.run(run(server, prompts(CLIENTS, vocab, seed + 10_000), [0.0] * CLIENTS))
    for at in range(rounds):
        turn = servers if at % 2 else servers[::-1]
        for server in turn:
            note("at once", server, asyncio.run(run(server, prompts(CLIENTS, vocab, seed + at), [0.0] * CLIENTS)))
        for server in turn:
            shared = prompts(CLIENTS, vocab, seed + 1000 + at, SHARED)
            note("shared prefix", server, asyncio.run(run(server, shared, [0.0] * CLIENTS)))
    peer = servers[-1].name
    rate = OPEN_LOAD * CLIENTS / median([load.seconds for load in found["at once"][peer]])
    for at in range(rounds):
        random = np.random.default_rng(seed + 2000 + at)
        arrivals = np.cumsum(random.exponential(1 / rate, OPEN_REQUESTS)).tolist()
        for server in servers if at % 2 else servers[::-1]:
            wanted = prompts(OPEN_REQUESTS, vocab, seed + 3000 + at)
            note(f"open, {OPEN_LOAD:.0%} of the peer's", server, asyncio.run(run(server, wanted, arrivals)))
    return found


def judge(found: dict[str, dict[str, list[Load]]], ours: str, theirs: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for load, runs in found.items():
        a, b = (
            {key: median([run.figures()[key] for run in runs[name]]) for key in runs[name][0].figures()}
            for name in (ours, theirs)
        )
        ratios = {key: a[key] / b[key] for key in a}
        met = ratios["ttft_mean_s"] <= TTFT and ratios["tbt_p99_s"] <= GAP
        if not load.startswith("open"):  # an open load gives everybody the same rate
            met &= ratios["tok_s"] >= RATE
        rows.append({"load": load, ours: a, theirs: b, "ratios": ratios, "met": met})
    first = [
        median([run.figures()["ttft_mean_s"] for run in found[load][ours]]) for load in ("at once", "shared prefix")
    ]
    rows.append(
        {
            "load": "first token with a shared prefix over without",
            "ratio": first[1] / first[0],
            "met": first[1] < first[0],
        }
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--llama-server", required=True, type=Path)
    parser.add_argument("--recipe", default="", help="systems for our side")
    parser.add_argument("--peer-file", type=Path, help="another file for the peer, by default the model's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    model = headway.load(given.model)
    assert isinstance(model, LanguageModel)
    file = given.peer_file or model.source
    if file is None:
        sys.exit(f"{given.model} is no GGUF file: name the peer's with --peer-file")
    ports = free_port(), free_port()
    recipe = ["--recipe", given.recipe] if given.recipe else []
    ours = [sys.executable, "-m", "headway", "serve", given.model, *recipe, "--port", str(ports[0]), "--quiet"]
    theirs = [str(given.llama_server), "-m", str(file), "-t", str(given.threads), "-tb", str(given.threads)]
    theirs += ["--parallel", str(CLIENTS), "-c", "8192", "-fa", "on", "--port", str(ports[1]), "--host", "127.0.0.1"]
    servers = [Server(model.name, ports[0]), Server("llama-server", ports[1])]
    with ExitStack() as stack:
        stack.enter_context(running([*ours, "--threads", str(given.threads)], ports[0], dict(os.environ)))
        stack.enter_context(running(theirs, ports[1]))
        found = measure(servers, model.architecture.vocab, given.rounds, given.seed)
    rows = judge(found, servers[0].name, servers[1].name)
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(row["load"], "met" if row["met"] else "MISSED")
            for name in (servers[0].name, servers[1].name):
                if name in row:
                    shown = ", ".join(f"{key} {value:.4g}" for key, value in row[name].items())  # type: ignore[attr-defined]
                    print(f"  {name}: {shown}")
            print("  ratios:", row.get("ratios") or row.get("ratio"))
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
