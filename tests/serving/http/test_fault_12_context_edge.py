"""Context edge: one token too many is a 400 with both numbers, and those who stream beside it notice nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from http_server import Server, events

CONTEXT = 1024
VOCAB = 270


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()  # type: ignore[no-any-return]


def ask(server: Server, length: int, most: int | None, seed: int) -> tuple[int, str]:
    body = {"model": "tiny", "prompt": prompt(length, seed), "max_tokens": most, "temperature": 0, "ignore_eos": True}
    reply = server.ask("/v1/completions", body)
    return reply.status_code, reply.text


def stream(server: Server, seed: int) -> str:
    body = {"model": "tiny", "prompt": prompt(100, seed), "max_tokens": 150, "temperature": 0.7, "seed": seed}
    reply = server.ask("/v1/completions", {**body, "stream": True, "ignore_eos": True})
    return "".join(event["choices"][0]["text"] for event in events(reply))


def test_the_edge_is_exact_and_nobody_else_notices(server: Server, figures: Callable[..., None]) -> None:
    quiet = [stream(server, seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        beside = [pool.submit(stream, server, seed) for seed in range(8)]
        asked = 0
        for length in (CONTEXT - 2, CONTEXT - 1, CONTEXT, CONTEXT + 1, CONTEXT + 2, 2 * CONTEXT, 100 * CONTEXT):
            for most in (None, 1, 2, 3, CONTEXT):
                status, text = ask(server, length, most, length)
                room = CONTEXT - length
                if most is None or length >= CONTEXT:
                    fits = room >= 1
                else:
                    fits = most <= room
                assert status == (200 if fits else 400), (length, most, text[:300])
                if not fits:
                    numbers = set(re.findall(r"\d+", text))
                    assert {str(length), str(CONTEXT)} <= numbers
                    assert '"context_length_exceeded"' in text
                asked += 1
        assert [future.result() for future in beside] == quiet
    server.wait_until_quiet()
    figures(requests=asked, streams_beside=8)


def test_a_text_far_too_long_is_refused_without_reading_it(server: Server) -> None:
    reply = server.ask("/v1/completions", {"model": "tiny", "prompt": "a b " * 200_000, "max_tokens": 1})
    assert reply.status_code == 400 and str(CONTEXT) in reply.text and "at least" in reply.text
