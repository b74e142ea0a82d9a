"""The protocol of the slot `kv`: how keys and values are kept, which `LanguageModel.with_kv` carries."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeVar

from headway.core.model import Model
from headway.core.system import YES, Context, Costs, Policy, Settings, Verdict, no
from headway.core.target import Target
from headway.llm.runtime import KVType

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


MOST_DIM = 1024
"""Dimensions of a head that the kernels of integer pages take."""


class CodedKV(KVSystem[S]):
    """Keys and values in integers, by the native store's own kernels."""

    @abstractmethod
    def store(self, settings: S) -> KVType:
        """The form of its pages."""

    def applies(self, model: Model, target: Target) -> Verdict:
        found = super().applies(model, target)
        if not found:
            return found
        dim = language(model).architecture.head_dim
        return YES if dim <= MOST_DIM else no(f"its heads have {dim} dimensions, the kernel takes {MOST_DIM}")

    def plug(self, model: Model, settings: S, context: Context) -> Model:
        return language(model).with_kv(self.store(settings))


def language(model: Model) -> LanguageModel:
    """The model as what `applies` has found it to be."""
    from headway.llm.language_model import LanguageModel

    assert isinstance(model, LanguageModel)
    return model
