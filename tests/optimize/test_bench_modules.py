"""`bench` of modules: engines that compute the same, timed on the same inputs in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headway
from headway.cli.main import main
from headway.core.cache import StepCache
from headway.core.errors import BadInput, HeadwayError
from headway.core.module_model import ModuleModel
from headway.optimize import engines
from headway.optimize.api import machine
from headway.optimize.bench_modules import bench_module, inputs_of
from headway.optimize.engines.onnxruntime import OnnxRuntime


class Small(nn.Module):
    """A convolution, a 1x1 convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self.first(x).relu()).relu().mean((2, 3)))


@pytest.fixture(autouse=True)
def at_home(home: Path) -> None:
    """Each in a home of its own."""


def small(task: Any = "module") -> ModuleModel:
    torch.manual_seed(0)
    return ModuleModel(Small(), torch.randn(1, 3, 12, 12), name="small", task=task)


def test_onnxruntime_computes_the_module_at_any_batch_from_one_export() -> None:
    model, cache = small(), StepCache()
    for _ in range(2):
        engine = OnnxRuntime(model, 1, cache)
    assert (cache.misses, cache.hits) == (1, 1)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 12, 12)
        torch.testing.assert_close(engine.run((x,)), model.module()(x), rtol=0, atol=1e-5)
    assert engine.size_bytes > model.size_bytes()


def test_every_engine_is_timed_at_every_batch() -> None:
    model = small()
    found = bench_module(model, machine(), against=["torch", "onnxruntime"], batches=[1, 3], rounds=3)
    assert [(row["engine"], row["batch"]) for row in found.rows] == [
        (name, batch) for batch in (1, 3) for name in ("headway", "torch", "onnxruntime")
    ]
    for row in found.rows:
        assert row["inputs"] == [[row["batch"], 3, 12, 12]] and len(row["samples"]) == 3
        assert row["throughput_per_s"] == pytest.approx(row["batch"] / row["latency_s"])
        assert "quality" not in row
    assert {series.arm for series in found.evidence.series} == {"headway", "again", "torch", "onnxruntime"}
    assert found.table().count("onnxruntime") >= 4


def test_with_a_recipe_the_unmodified_model_is_timed_too() -> None:
    model = small()
    packed = headway.apply("int8", model, threads=1)
    found = bench_module(packed, machine(), original=model, rounds=3)
    bits = {row["engine"]: row["bits"] for row in found.rows}
    assert list(bits) == ["headway", "headway:unmodified"] and bits["headway"] < 32 == bits["headway:unmodified"]


def test_an_engine_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(OnnxRuntime):
        def run(self, inputs: Any) -> Any:
            return 1.01 * super().run(inputs)

    monkeypatch.setattr(
        "headway.optimize.engines.onnxruntime.make", lambda model, variant, threads: [Wrong(model, 1, StepCache())]
    )
    with pytest.raises(HeadwayError, match="onnxruntime does not compute small: its output is off by"):
        bench_module(small(), machine(), against=["onnxruntime"], rounds=3)


def test_a_sample_without_one_batch_axis_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a.sum() + b

    with pytest.raises(BadInput, match="no one batch axis"):
        inputs_of(ModuleModel(Two(), (torch.ones(2), torch.ones(3))), None, 4, 1)


def test_peers_fit_the_task() -> None:
    for names, task in ((["llama.cpp"], "module"), (["onnxruntime"], "language"), (["vllm"], None)):
        with pytest.raises(BadInput, match="no peer"):
            engines.check(names, task)
    engines.check(["llama.cpp:Q4_0", "torch", "onnxruntime"])
    with pytest.raises(BadInput, match="named twice"):
        bench_module(small(), machine(), against=["torch", "torch"])
    with pytest.raises(BadInput, match="no variant"):
        bench_module(small(), machine(), against=["torch:bf16"])


def test_the_command_gives_rows_with_quality_of_an_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "minilm-l6", "--recipe", "int8", "--against", "torch", "--context", "16", "--windows", "1"]
    assert main([*words, "--batch", "2", "--json", "--threads", "1"]) == 0
    rows = {row["engine"]: row for row in json.loads(capsys.readouterr().out)["engines"]}
    assert all(row["inputs"] == [[2, 16], [2, 16]] for row in rows.values())
    assert 0.99 < rows["headway"]["quality"] < 1 - 1e-6
    for name in ("headway:unmodified", "torch"):
        assert rows[name]["quality"] == pytest.approx(1, abs=1e-6)
    assert rows["headway"]["size_bytes"] < 0.66 * rows["torch"]["size_bytes"]
