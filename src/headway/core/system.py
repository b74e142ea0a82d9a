"""The five kinds of system and what each must offer (DESIGN: a system is special in nothing else)."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.progress import Progress

if TYPE_CHECKING:
    from headway.core.budget import Budget
    from headway.core.cache import StepCache
    from headway.core.model import Model, Site
    from headway.core.target import Target


class Settings(BaseModel):
    """Base of every system's settings: unknown fields are refused, values are immutable.

    Give each field a `Field(default, ge=..., le=..., description="unit; meaning; source")`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], system: str) -> Any:
        """Validate `values`; raises `BadInput` naming the field, the rule and the known fields.

        Types are those of JSON and are not converted: "3" and true are no integers.
        """
        return _validated(cls, values, system, "setting", f"see: headway systems {system}")


class Problem(Settings):
    """Base of the tables of a planner's problem file; fields as in `Settings`."""

    @classmethod
    def parse(cls, values: Mapping[str, Any], system: str) -> Any:
        """Validate a problem; `system` is the file it came from. Raises `BadInput` naming the field and the rule."""
        return _validated(cls, values, system, "key", "the documentation's page on plans shows a whole problem")


def _validated(cls: type[Settings], values: Mapping[str, Any], source: str, noun: str, mend: str) -> Any:
    try:
        return cls.model_validate_json(json.dumps(dict(values), default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or f"{noun}s"
        if first["type"] == "extra_forbidden":
            known = ", ".join(_fields_at(cls, first["loc"][:-1]))
            raise BadInput(
                f"{source} has no {noun} {where!r}", f"its {noun}s are: {known}" if known else mend
            ) from None
        if first["type"] == "missing":
            raise BadInput(f"{source} lacks the {noun} {where!r}", mend) from None
        shown = f"{first.get('input')!r:.60}"
        raise BadInput(f"{source}: {where}={shown}: {first['msg']}", mend) from None


def _fields_at(cls: Any, path: Sequence[str | int]) -> Sequence[str]:
    """The names of the fields of the table at `path` within `cls`; empty where that is no plain table."""
    for part in path:
        if isinstance(part, int):
            continue
        found = cls.model_fields.get(part)
        if found is None:
            return ()
        inside = [found.annotation, *get_args(found.annotation)]
        tables = [kind for kind in inside if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(tables) != 1:
            return ()
        cls = tables[0]
    return list(cls.model_fields)


class WeightSettings(Settings):
    """Settings that every system of the `weights` slot shares: which sites it takes."""

    only: tuple[str, ...] = Field((), description="site patterns to take, e.g. layers.*.mlp.*; empty = all")
    skip: tuple[str, ...] = Field((), description="site patterns to leave as they are")

    @field_validator("only", "skip", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Costs:
    """What a system is expected to cost, before anything is run; `None` where it says nothing."""

    latency_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    memory_bytes: float | None = None
    size_bytes: float | None = None
    quality: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a system applies to a model on a target, with the reason when it does not."""

    yes: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.yes


YES = Verdict(True)


def no(reason: str) -> Verdict:
    return Verdict(False, reason)


@dataclass
class Context:
    """What a transform may use besides the model: data to calibrate on, the step cache, threads, the seed."""

    target: Target
    calibration: Any = None
    """Inputs of the readable torch module: a list of argument tuples (a language model: int64 token tensors)."""
    cache: StepCache | None = None
    threads: int = 0
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    original: Model | None = None
    """The model before the recipe's first step: what calibration runs, so that steps share it."""
    held: dict[str, Any] = field(default_factory=dict, repr=False)
    """What was read from the cache and will be needed again, by key; shared by copies of this context."""
    notes: list[str] = field(default_factory=list)
    """Sentences a transform wants in the report (what it left alone, and why)."""


class System(ABC, Generic[S]):
    """A published system. The module that defines it has a literal `SYSTEM = Card(...)` beside the class."""

    card: ClassVar[Card]
    settings: ClassVar[type[Settings]]

    @abstractmethod
    def applies(self, model: Model, target: Target) -> Verdict:
        """Whether it can do anything for this model on this machine."""

    @abstractmethod
    def predict(self, model: Model, target: Target, settings: S) -> Costs:
        """Cheap estimate from the target's measured rates; runs nothing of the model."""

    def options(self, model: Model, target: Target) -> Sequence[Mapping[str, Any]]:
        """Settings worth trying when the user left the choice to the search; by default only the defaults."""
        return ({},)


class ModelFamily(System[S]):
    """Kind `model`: a configuration to a network. It is a MODEL itself, written `slug` or `slug(variant=s1)`."""

    def applies(self, model: Model, target: Target) -> Verdict:
        return no(f"{self.card.slug} is a network of its own: give it as the model")

    def predict(self, model: Model, target: Target, settings: S) -> Costs:
        return Costs()

    @abstractmethod
    def build(self, settings: S) -> Model:
        """The network, with random weights unless the settings name a file of weights.

        The origin of what is built is `family:SLUG(SETTINGS)`: from it an artifact is built again.
        """


@dataclass
class SearchContext:
    """What a search may use besides its space and budget."""

    target: Target
    cache: StepCache
    checkpoints: Path
    """A folder that is there, for what goes on after Ctrl-C."""
    data: Path | None = None
    """The user's images; None: those that the space is made for."""
    seed: int = 0
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class FoundNet:
    """One network of a space: the family's settings that build it again, and what is known of it.

    Keys as in the JSON interface; `quality` is the accuracy over that of the largest network of the space.
    """

    settings: Mapping[str, Any]
    measured: Mapping[str, float] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a search gives: the trained network, the largest one of the space beside it, others that it looked at."""

    model: Model
    winner: FoundNet
    baseline: FoundNet
    others: Sequence[FoundNet] = ()
    notes: Sequence[str] = ()


class Searcher(ModelFamily[S]):
    """A family whose networks are searched for: in a space, under a budget."""

    limits: ClassVar[tuple[str, ...]] = ("latency", "size", "quality")
    """Metrics that a budget of this search may limit."""

    @abstractmethod
    def spaces(self) -> Mapping[str, str]:
        """The spaces by name, with what each is in a few words."""

    @abstractmethod
    def search(self, space: str, budget: Budget, settings: S, context: SearchContext) -> Found:
        """The best network that the budget allows; the nearest to it where none does."""


class Transform(System[S]):
    """Kind `transform`: a model to a model."""

    @abstractmethod
    def apply(self, model: Model, settings: S, context: Context) -> Model: ...


class NetworkTransform(Transform[S]):
    """A transform of the slot `network`: another network of the same function, at a part of the cost.

    It takes minutes, so that a search asks before: what would be left, and which settings the time suffices for.
    """

    @abstractmethod
    def shares(self, settings: S) -> Mapping[str, float]:
        """Metric (`latency_s`, `size_bytes`, `memory_bytes`) -> share of the original's that is expected to be left."""

    @abstractmethod
    def fitted(self, model: Model, settings: S, context: Context, seconds: float) -> Mapping[str, Any] | None:
        """What to set besides, so that `apply` takes so long at most; None where it takes longer whatever is set."""


class Policy(System[S]):
    """Kind `policy`: a behaviour of a runtime slot while it runs."""

    @abstractmethod
    def plug(self, model: Model, settings: S, context: Context) -> Model:
        """The model with this policy in its slot."""


@dataclass
class PlanContext:
    """What a planner may use besides the problem. `load` turns a MODEL and a RECIPE ("" for none) into a model."""

    load: Callable[[str, str], Model]
    folder: Path = Path()
    """Where relative paths of the problem begin."""
    source: str = "problem"
    """Name of the problem, for errors."""
    threads: int = 0
    seed: int = 0
    progress: Progress = field(default_factory=Progress)


class Planner(System[S]):
    """Kind `planner`: a problem to a plan."""

    def applies(self, model: Model, target: Target) -> Verdict:
        return no(f"{self.card.slug} takes a problem: headway plan {self.card.slug} PROBLEM.toml")

    def predict(self, model: Model, target: Target, settings: S) -> Costs:
        return Costs()

    @abstractmethod
    def plan(self, problem: Mapping[str, Any], settings: S, context: PlanContext) -> Mapping[str, Any]:
        """The plan as a JSON document; `met`: whether it does what the problem asks.

        Raises `BadInput` for a problem that breaks a rule.
        """

    @abstractmethod
    def table(self, plan: Mapping[str, Any]) -> str:
        """A plan, for people."""


class Instrument(System[S]):
    """Kind `instrument`: a machine or a model to measurements."""

    @abstractmethod
    def measure(self, subject: Any, settings: S) -> Mapping[str, Any]: ...


def sites_taken(settings: WeightSettings, sites: Sequence[Site]) -> list[Site]:
    """The sites a weight system takes: those `only` selects (all, when empty) less those `skip` names."""
    return [
        site for site in sites if (not settings.only or site.matches(settings.only)) and not site.matches(settings.skip)
    ]
