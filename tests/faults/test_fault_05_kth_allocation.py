"""The k-th native allocation fails, for every k, while a model is loaded, read, decoded from and quantised.

Each gives a typed error, the memory is as before, and the next request gives the same logits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinyFolder, llama_tensors

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def failing_new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled once."""
    library = tmp_path_factory.mktemp("shim") / "failing_new.so"
    compiler = os.environ.get("CXX", "c++")
    source = str(HERE / "failing_new.cpp")
    subprocess.run([compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-w", source, "-o", str(library)], check=True)
    return library


def every_kth(shim: Path, folder: Path, layers: int, every: int) -> dict[str, int]:
    model = TinyFolder(folder / "tiny")
    model.config["num_hidden_layers"] = layers
    model.tensors = llama_tensors(model.config)
    model.config["max_position_embeddings"] = 512
    model.write()
    run = subprocess.run(
        [sys.executable, str(HERE / "kth_allocation.py"), str(model.path), str(every)],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, int] = json.loads(run.stdout)
    assert all(found.values()), "a phase that allocates nothing shows nothing"
    return {**found, "failures": sum(found.values())}


def test_every_third_allocation_of_one_layer_may_fail(
    failing_new: Path, tmp_path: Path, figures: Callable[..., None]
) -> None:
    figures(**every_kth(failing_new, tmp_path, layers=1, every=3))


@pytest.mark.nightly
def test_every_allocation_of_six_layers_may_fail(
    failing_new: Path, tmp_path: Path, figures: Callable[..., None]
) -> None:
    found = every_kth(failing_new, tmp_path, layers=6, every=1)
    assert found["failures"] >= 500
    figures(**found)
