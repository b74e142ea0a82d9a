"""Which `Subject` a model gets, and what a model's sites hold."""

from __future__ import annotations

from headway.core.model import Model
from headway.core.workload import Workload
from headway.optimize.subject import Subject


def make_subject(model: Model, workload: Workload) -> Subject:
    """A language model takes its own runtime's clocks and text; every other module its sample and data."""
    if model.task == "language":
        from headway.optimize.language_subject import LanguageSubject

        return LanguageSubject(model, workload)  # type: ignore[arg-type]
    from headway.optimize.module_subject import ModuleSubject

    return ModuleSubject(model, workload)  # type: ignore[arg-type]


def stored_forms(model: Model) -> dict[str, tuple[str, float]]:
    """Site -> (form, bytes) of the weights a model holds."""
    held = {site.name: model.weight(site.name) for site in model.sites()}
    return {name: (weight.form, float(weight.nbytes)) for name, weight in held.items()}
