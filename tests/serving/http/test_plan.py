"""A server started from a plan runs what the plan says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from http_server import Home, Server

from headway.core.files import atomic_write_json


def test_a_server_runs_a_plan(home: Home, tmp_path: Path) -> None:
    plan = {
        "schema": 1,
        "system": "serving",
        "model": str(home.model),
        "recipe": "sarathi-serve(token_budget=32)",
        "limits": {"threads": home.threads, "max_seqs": 3, "kv_bytes": 1 << 22},
        "slo": {"ttft_s": 1.0, "tbt_s": 0.1, "tpot_s": None, "quantile": 0.99},
        "predicted": {"rate": 3.0},
    }
    atomic_write_json(tmp_path / "plan.json", plan)
    words = ["serve", "--plan", str(tmp_path / "plan.json"), "--json", "--quiet", "--port", "0"]
    with Server(home, [sys.executable, "-m", "headway", *words]) as server:
        client = server.client()
        name = client.models.list().data[0].id
        answer = client.completions.create(model=name, prompt="the thing", max_tokens=3)
        assert answer.usage is not None and answer.usage.completion_tokens <= 3
        systems = json.dumps(server.live())
        assert "sarathi-serve(token_budget=32)" in systems
