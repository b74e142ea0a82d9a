"""Parameter extremes: whatever stands in a field, the answer is 200 or 400 in OpenAI's shape, for little work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from http_server import Server

CPU_S = 0.25
ROOM_BYTES = 64 << 20
NUMBERS = (-1, 0, 1, 2**31, 2**63 - 1, 2**63, 10**9, 10**400, -(2**63), 1.5, -0.0, 1e308, -1e308, 1e-320)
ODD = (None, True, "", "1", [], {}, [1], {"a": 1}, "\ud800", "\x00", "x" * 100_000)
RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "[" * 5000, "{" * 5000, '"\\ud800"', '"\\udc00\\ud800"', "00", "0x10"),
    *('"' + "y" * 2_000_000 + '"', '["' + '","'.join(["s"] * 200_000) + '"]', '"\x00"', "", "}", '"\\q"'),
)


def bodies() -> Iterator[tuple[str, str]]:
    """(route, body as text)"""
    base = {"model": "tiny", "prompt": "the", "max_tokens": 2, "temperature": 0}
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "the"}], "max_tokens": 2}
    fields = ("n", "max_tokens", "temperature", "top_p", "seed", "logprobs", "top_k", "min_p", "repetition_penalty")
    for field in fields:
        for value in NUMBERS:
            yield "/v1/completions", json.dumps({**base, field: value})
    for field in (*fields, "stop", "prompt", "model", "stream", "stream_options", "response_format", "logit_bias"):
        for odd in ODD:
            yield "/v1/completions", json.dumps({**base, field: odd})
    for field in ("messages", "response_format", "top_logprobs", "max_completion_tokens", "tools"):
        for value in (*NUMBERS, *ODD):
            yield "/v1/chat/completions", json.dumps({**chat, field: value})
    for field in ("temperature", "stop", "prompt", "seed"):
        for raw in RAW:
            kept = {key: value for key, value in base.items() if key != field}
            yield "/v1/completions", json.dumps(kept)[:-1] + f', "{field}": {raw}}}'
    yield "/v1/completions", json.dumps({**base, "logit_bias": {str(at): 1 for at in range(150_000)}})
    yield "/v1/completions", json.dumps({**base, **{f"unknown {at}": 1 for at in range(50_000)}})
    yield "/v1/completions", json.dumps({**base, "prompt": [[1]] * 150_000})
    yield "/v1/completions", json.dumps({**base, "prompt": "z" * 1_000_000})
    yield "/v1/completions", json.dumps({**base, "prompt": list(range(200)) * 2000})
    yield "/v1/completions", json.dumps({**base, "prompt": ["a"] * 1000})
    yield "/v1/chat/completions", json.dumps({**chat, "messages": [{"role": "user", "content": "a"}] * 100_000})
    yield "/v1/chat/completions", json.dumps({**chat, "messages": [{"role": "user", "content": "a"}] * 4000})
    yield "/v1/chat/completions", json.dumps({**chat, "messages": [{"role": "user", "content": "a " * 400_000}]})


def test_every_extreme_is_answered_for_little_work(server: Server, figures: Callable[..., None]) -> None:
    process = psutil.Process(server.process.pid)
    server.ask("/v1/completions", {"model": "tiny", "prompt": "the", "max_tokens": 2})
    start = process.memory_info().rss
    worst: dict[str, Any] = {"cpu_s": 0.0, "of": ""}
    asked, statuses = 0, set()
    for route, body in bodies():
        before = process.cpu_times()
        data = body.encode("utf-8", "surrogatepass")
        reply = server.ask(route, content=data, method="POST", headers={"content-type": "application/json"})
        after = process.cpu_times()
        cpu = after.user + after.system - before.user - before.system
        if cpu > worst["cpu_s"]:
            worst = {"cpu_s": cpu, "of": body[:80]}
        assert reply.status_code in (200, 400, 404, 413), (reply.status_code, body[:300], reply.text[:300])
        if reply.status_code != 200:
            error = reply.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"], body[:300]
            assert "Traceback" not in reply.text and "/src/" not in reply.text
        statuses.add(reply.status_code)
        asked += 1
    grown = process.memory_info().rss - start
    assert asked >= 400 and statuses >= {200, 400}
    assert worst["cpu_s"] <= CPU_S, worst
    assert grown <= ROOM_BYTES
    server.wait_until_quiet()
    assert server.live()["restarts"] == 0
    figures(requests=asked, worst_cpu_s=worst["cpu_s"], grown_mb=grown / 1e6)
