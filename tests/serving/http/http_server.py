"""Starting `headway serve` for tests, and asking it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import openai
import psutil
import pytest
from known_machine import use_home
from serving_traces import COST

import headway
from headway.core.cache import StepCache
from headway.llm.language_model import LanguageModel
from headway.serving.measuring import cost_key

PATIENCE_S = 60.0
CLIENT = httpx2.Client(verify=False, limits=httpx2.Limits(max_keepalive_connections=0))
"""For all requests, each over a connection of its own: making a client reads all certificates, which takes longer."""


class Home:
    """A home folder in which this machine and the tiny model's iteration time are known."""

    def __init__(self, folder: Path, model: Path, threads: int = 1) -> None:
        self.folder, self.model, self.threads = folder, model, threads
        loaded = headway.load(model)
        assert isinstance(loaded, LanguageModel)
        self.loaded = loaded
        cost = COST.as_json()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HEADWAY_HOME", "")  # put back afterwards
            use_home(folder)
            StepCache().json(cost_key(loaded, threads), lambda: cost)

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        return {**kept, "HEADWAY_HOME": str(self.folder), "PYTHONPATH": os.pathsep.join(sys.path)}

    def command(self, *options: str, models: Sequence[str] = ()) -> list[str]:
        served = [str(self.model), *models]
        words = ["serve", *served, "--json", "--quiet", "--threads", str(self.threads), *options]
        return [sys.executable, "-m", "headway", *words]

    def serve(self, *options: str, models: Sequence[str] = ()) -> Server:
        """`with home.serve("--max-seqs", "4") as server:`"""
        return Server(self, self.command("--port", "0", *options, models=models))


@dataclass
class Server:
    """A running server; leaving the `with` block ends it."""

    home: Home
    command: list[str]
    key: str = ""
    address: str = ""
    process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self.command, env=self.home.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate(timeout=PATIENCE_S)
            raise AssertionError(f"the server did not start: {errors[-3000:]}")
        self.address = json.loads(line)["address"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()
                if kind is None:
                    raise
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def worker(self) -> psutil.Process:
        """The engine's process."""
        found = [p for p in psutil.Process(self.process.pid).children() if "headway.optimize.served" in p.cmdline()]
        assert len(found) == 1
        return found[0]

    def client(self, **options: Any) -> openai.OpenAI:
        made = {"base_url": f"{self.address}/v1", "api_key": self.key or "none", "max_retries": 0, **options}
        return openai.OpenAI(**made)

    def ask(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        """One request; a body makes it a POST."""
        headers = {**({"authorization": f"Bearer {self.key}"} if self.key else {}), **options.pop("headers", {})}
        method = options.pop("method", "GET" if body is None else "POST")
        options.setdefault("timeout", PATIENCE_S)
        return CLIENT.request(method, self.address + path, json=body, headers=headers, **options)

    def live(self) -> dict[str, Any]:
        """What the live page knows of the model."""
        found: dict[str, Any] = self.ask("/live").json()["models"][0]
        return found

    def wait_until_quiet(self) -> dict[str, Any]:
        """Wait until nothing runs and all pages are free or only cached; the state then."""
        until = time.monotonic() + PATIENCE_S
        while True:
            state = self.live()
            if not (state["waiting"] or state["prefilling"] or state["decoding"] or state["held"]):
                return state
            assert time.monotonic() < until, f"not quiet: {state}"
            time.sleep(0.05)


def events(response: httpx2.Response) -> list[Any]:
    """The events of a stream that was read whole; `[DONE]` must be the last."""
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]
