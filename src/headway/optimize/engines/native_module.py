"""A `ModuleModel` as an engine."""

from __future__ import annotations

from headway.core.module_model import ModuleModel
from headway.core.module_workload import Inputs
from headway.core.version import __version__
from headway.optimize.engines.base import Repeat


class HeadwayModule:
    """The model as `run` runs it: as it is, or with a recipe applied."""

    version = __version__

    def __init__(self, model: ModuleModel, name: str = "headway") -> None:
        self.name, self.run = name, model.run
        self.size_bytes = model.size_bytes()
        weights = [model.weight(site.name) for site in model.sites()]
        values = sum(weight.shape[0] * weight.shape[1] for weight in weights)
        self.bits = 8.0 * sum(weight.nbytes for weight in weights) / values if values else 32.0

    def repeat(self, inputs: Inputs) -> Repeat:
        return lambda: self.run(inputs)
