"""The protocol of the slot `kv`: how keys and values are kept, which `LanguageModel.with_kv` carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from headway.core.model import Model
from headway.core.system import YES, Costs, Policy, Settings, Verdict, no
from headway.core.target import Target

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

S = TypeVar("S", bound=Settings)


class KVSystem(Policy[S]):
    """A system of this slot. `plug` is left to it."""

    def applies(self, model: Model, target: Target) -> Verdict:
        return YES if model.task == "language" else no("it has no keys and values")

    def predict(self, model: Model, target: Target, settings: S) -> Costs:
        """Nothing that is the same for every context: the main path predicts the plugged model."""
        return Costs(size_bytes=float(model.size_bytes()))


def language(model: Model) -> LanguageModel:
    """The model as what `applies` has found it to be."""
    from headway.llm.language_model import LanguageModel

    assert isinstance(model, LanguageModel)
    return model
