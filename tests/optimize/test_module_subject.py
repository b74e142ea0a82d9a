"""What is predicted of a torch module: its memory holds the network as built beside the weights it is filled with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headway.core.errors import BadInput
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


def one_linear(workload: Workload | None = None) -> ModuleSubject:
    net = torch.nn.Linear(4, 4).eval()
    inputs = [(torch.ones(1, 4) * n,) for n in range(1, 11)]
    model = ModuleModel(net, inputs[0][0], name="one")
    return ModuleSubject(model, workload or Workload(data=workload_from(inputs, model.task)))


@pytest.mark.parametrize("wrong", [torch.ones(1, 5), torch.ones(1, 4, dtype=torch.int64), torch.ones(4, 1)])
def test_inputs_that_the_network_does_not_take_are_named(wrong: torch.Tensor) -> None:
    subject = one_linear(Workload(data=workload_from([(wrong,)] * 5)))
    with pytest.raises(BadInput, match="one does not take the inputs given"):
        subject.qualities([subject.model], "search", 1, full=True)


@pytest.mark.parametrize("answer", ["float('nan')", "'good'", "None", "[]", "float('inf')"])
def test_a_judge_must_give_numbers(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"judge_{abs(hash(answer))}"
    (tmp_path / f"{name}.py").write_text(f"def judge(a, b): return {answer}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = one_linear()
    subject = one_linear(Workload(data=plain.data, quality=f"{name}:judge"))
    with pytest.raises(BadInput, match=f"quality {name}:judge gave"):
        subject.qualities([subject.model], "search", 1, full=True)


def test_on_another_network_quality_is_still_against_the_first() -> None:
    torch.manual_seed(0)
    nets = [torch.nn.Linear(4, 4).eval() for _ in range(2)]
    inputs = [(torch.randn(1, 4),) for _ in range(10)]
    first, second = (ModuleModel(net, inputs[0][0]) for net in nets)
    subject = ModuleSubject(first, Workload(data=workload_from(inputs, first.task))).on(second)
    found = subject.qualities([first, second], "search", subject.units("search"), True)
    assert found[0]["quality"] == 1.0 and found[1]["quality"] < 0.9
