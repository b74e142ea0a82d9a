"""Adapters trained beside the requests, as `headway serve --finetune` does it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from http_server import PATIENCE_S, Home, Server

from headway.llm.trainable import stack_of
from headway.training.lora import Adapters


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [{"text": "the thing of the an and"}, {"prompt": "the thing", "completion": " of the"}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def wait_until_trained(server: Server) -> dict[str, object]:
    until = time.monotonic() + PATIENCE_S
    while True:
        job = server.live()["training"]
        if job is not None and job["step"] == job["steps"]:
            return dict(job)
        assert time.monotonic() < until, f"not trained: {job}"
        time.sleep(0.05)


def test_requests_are_answered_alike_and_adapters_lie_in_their_folder(home: Home, data: Path, tmp_path: Path) -> None:
    body = {"model": "tiny", "prompt": "the thing", "max_tokens": 20, "temperature": 0}
    with home.serve() as alone:
        plain = alone.ask("/v1/completions", body).json()["choices"]
        assert alone.live()["training"] is None
    folder = tmp_path / "adapters"
    recipe = "flexllm(steps=3, accum=1, rank=2, targets=['down_proj', 'q_proj'])"
    command = home.command("--port", "0", "--finetune", str(data), "--adapters", str(folder), "--recipe", recipe)
    command.remove("--quiet")
    with Server(home, command) as server:
        assert server.ask("/v1/completions", body).json()["choices"] == plain
        job = wait_until_trained(server)
        assert job["steps"] == 3 and isinstance(job["loss"], float) and not job["trouble"]
        assert 'headway_finetune_steps{model="tiny"} 3.0' in server.ask("/metrics").text
        assert server.ask("/v1/completions", body).json()["choices"] == plain
        server.process.send_signal(signal.SIGTERM)
        _, told = server.process.communicate(timeout=PATIENCE_S)
        assert f"training is done: the adapters are in {folder}" in told
    found = Adapters.load(folder, stack_of(home.loaded))
    assert found.settings.rank == 2
    assert any(pair.b.any() for pair in found.pairs.values())


def test_training_goes_on_from_adapters_that_are_there(home: Home, data: Path, tmp_path: Path) -> None:
    stack, folder = stack_of(home.loaded), tmp_path / "adapters"
    ends = []
    for steps in (1, 2):
        recipe = f"flexllm(steps={steps}, accum=1, rank=2)"
        with home.serve("--finetune", str(data), "--adapters", str(folder), "--recipe", recipe) as server:
            wait_until_trained(server)
        ends.append(Adapters.load(folder, stack))
    first, second = (ends[n].pairs[0, "mlp.down_proj"] for n in (0, 1))
    # B begins at zero and AdamW moves a value by about lr at each step: begun anew, two steps would end at 2e-4.
    assert 0.9e-4 < first.b.abs().max() < 1.1e-4
    assert second.b.abs().max() > 2.5e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--finetune", "DATA"], "belong together"),
        (["--adapters", "OUT"], "belong together"),
        (["--finetune", "nowhere.jsonl", "--adapters", "OUT"], "nowhere.jsonl: no such file"),
        (["--finetune", "DATA", "--adapters", "OUT", "--recipe", "vllm-like"], "put flexllm into the recipe"),
        (["--finetune", "DATA", "--adapters", "OUT", "--recipe", "flexllm(rank=99999)"], "rank 99999"),
    ],
)
def test_what_cannot_be_trained_ends_in_one_line(
    home: Home, data: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    places = {"DATA": str(data), "OUT": str(tmp_path / "out")}
    command = home.command("--port", "0", *(places.get(word, word) for word in options))
    ended = subprocess.run(command, env=home.environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert said in ended.stderr and len(ended.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
