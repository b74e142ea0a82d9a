"""API fuzz: Schemathesis on every route of the server's own description, right and wrong data, NUL bytes allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from http_server import Home, Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def fuzz(server: Server, examples: int, folder: Path) -> str:
    script = Path(sys.executable).with_name("schemathesis")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "schemathesis.cli"]
    run = subprocess.run(
        [
            *words,
            "run",
            f"{server.address}/openapi.json",
            "--mode=all",
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={examples}",
            f"--checks={CHECKS}",
            "--generation-database=none",
            "--seed=1",
            "--request-timeout=60",
            "--no-color",
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env=server.home.environment,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return run.stdout


def check(home: Home, examples: int, folder: Path, figures: Callable[..., None]) -> None:
    with home.serve("--budget", "ttft<=1000s") as server:
        said = fuzz(server, examples, folder)
        steps = server.live()["steps"]
        assert server.ask("/v1/completions", {"model": "tiny", "prompt": "the", "max_tokens": 3}).status_code == 200
        state = server.live()
        assert state["steps"] > steps and state["restarts"] == 0
        cases = re.search(r"(\d[\d,]*) generated", said)
        figures(cases=cases[1] if cases else "?", engine_steps=state["steps"])


def test_some_hundred_cases(home: Home, tmp_path: Path, figures: Callable[..., None]) -> None:
    check(home, 12, tmp_path, figures)


@pytest.mark.nightly
def test_five_thousand_cases(home: Home, tmp_path: Path, figures: Callable[..., None]) -> None:
    check(home, 450, tmp_path, figures)
