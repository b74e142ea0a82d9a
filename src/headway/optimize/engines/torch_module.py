"""PyTorch, eager, float32: the readable module."""

from __future__ import annotations

from typing import Any

import torch

from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.module_workload import Inputs
from headway.optimize.engines.base import Repeat


def make(model: ModuleModel, variant: str, threads: int) -> list[TorchModule]:
    """Threads are as set for the process."""
    if variant:
        raise BadInput(f"torch has no variant {variant!r} for modules", "write torch")
    return [TorchModule(model)]


class TorchModule:
    name, version, bits = "torch", torch.__version__, 32.0

    def __init__(self, model: ModuleModel) -> None:
        self.module = model.module()
        self.size_bytes = sum(p.numel() * p.element_size() for p in self.module.parameters())

    def repeat(self, inputs: Inputs) -> Repeat:
        return lambda: self.run(inputs)

    def run(self, inputs: Inputs) -> Any:
        with torch.inference_mode():
            return self.module(*inputs)
