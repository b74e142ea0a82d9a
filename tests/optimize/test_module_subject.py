"""What is predicted of a torch module: its memory holds the network as built beside the weights it is filled with."""

from __future__ import annotations

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
