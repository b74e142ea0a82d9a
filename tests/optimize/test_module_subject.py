"""What is predicted of a torch module: its memory holds the network as built beside the weights it is filled with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headway.core.module_model import ModuleModel
from headway.core.module_workload import workload_from
from headway.core.target import ComputeRate, MemoryLevel, Target
from headway.core.workload import Workload
from headway.optimize.module_subject import ModuleSubject
from headway.optimize.subjects import stored_forms

TARGET = Target(
    name="example",
    fingerprint="0" * 16,
    memory=(MemoryLevel("DRAM", 1 << 34, 1e10, 1e10, 1e-7),),
    compute=(ComputeRate("f32", "fma", 1e11, 1e11),),
    dispatch_s=1e-6,
    crossing_s=1e-7,
    ram_bytes=1 << 34,
    available_bytes=1 << 33,
    cores=1,
    isa=(),
)


def test_what_it_measures_is_described_by_the_content_of_every_split() -> None:
    net = torch.nn.Linear(4, 4).eval()
    random = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(1, 4, generator=random),) for _ in range(10)]
    model = ModuleModel(net, inputs[0][0], name="one")

    def described(given: list[tuple[torch.Tensor]]) -> object:
        return ModuleSubject(model, Workload(data=workload_from(given, model.task))).describe()

    assert described(inputs) == described([(piece.clone(),) for (piece,) in inputs])
    for changed in range(len(inputs)):
        others = [(piece + (at == changed),) for at, (piece,) in enumerate(inputs)]
        assert described(others) != described(inputs)


def test_an_edited_judge_is_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "judge_of_tests.py"
    seen = set()
    for body in ("return 1.0", "return 0.5"):
        file.write_text(f"def judge(a, b): {body}\n")
        seen.add(Workload(quality="judge_of_tests:judge").as_json()["quality"])
    assert len(seen) == 2 and all(name.startswith("judge_of_tests:judge ") for name in seen)


def test_a_smaller_weight_saves_its_bytes_once() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 64)).eval()
    inputs = [(torch.randn(1, 256),) for _ in range(8)]
    model = ModuleModel(net, inputs[0][0], name="two")
    subject = ModuleSubject(model, Workload(data=workload_from(inputs, model.task)))
    stored = stored_forms(model)
    before = subject.predict(TARGET, stored, 1)["memory_bytes"]
    bytes_of = sum(p.numel() * 4 for p in net.parameters())
    assert sum(before.values()) == 2 * bytes_of
    first = model.sites()[0].name
    after = subject.predict(TARGET, {**stored, first: ("int8", 1000.0)}, 1)["memory_bytes"]
    assert sum(before.values()) - sum(after.values()) == stored[first][1] - 1000.0
