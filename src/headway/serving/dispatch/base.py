"""The dispatcher protocol: what a dispatcher sees of a fleet, and what it decides for each call.

A dispatcher is a plain object, like a scheduler: no clock, no threads, no torch. The same one runs before real engines
and, unchanged, in the simulator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headway.core.errors import Lacking
from headway.serving.job import Job
from headway.serving.schedulers.base import View


@dataclass(slots=True, eq=False)
class Call:
    """A request to be placed. What it will generate is unknown: `job.most` is a bound, in the simulator the truth."""

    job: Job
    query: Any = None
    """Whose call it is, where queries have several."""
    prefix: int = 0
    """Tokens that its prompt begins with and shares with every call of its template."""
    template: str = ""
    """Calls of one template share `prefix`."""
    request: Any = None
    """What a real engine is asked (`Request`)."""
    answer: list[int] = field(default_factory=list)
    """The tokens a real engine gave."""


class InstanceView(Protocol):
    """One engine of the fleet."""

    @property
    def kind(self) -> str:
        """Instances of one kind are alike: the same model on the same machine."""
        ...

    @property
    def alive(self) -> bool: ...

    @property
    def state(self) -> View: ...


class FleetView(Protocol):
    """What a dispatcher may look at. It must change nothing of it."""

    @property
    def now(self) -> float: ...

    @property
    def instances(self) -> Sequence[InstanceView]: ...


class Dispatcher(ABC):
    """Chooses an instance for each call. State it keeps between calls is its own."""

    @abstractmethod
    def route(self, call: Call, fleet: FleetView) -> int:
        """Index of the instance that takes the call; it must be alive. Raises `Lacking` when none is."""

    def done(self, call: Call, instance: int, fleet: FleetView) -> None:  # noqa: B027
        """The call has left that instance: answered, refused, or lost with it."""


def alive(fleet: FleetView) -> list[int]:
    """Indices of the instances that answer; raises `Lacking` when there is none."""
    found = [at for at, instance in enumerate(fleet.instances) if instance.alive]
    if not found:
        raise Lacking("no instance of the fleet is alive", "start one")
    return found


class RoundRobin(Dispatcher):
    """Every instance in turn: the plain reference."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, call: Call, fleet: FleetView) -> int:
        living = alive(fleet)
        chosen = next((at for at in living if at >= self._next), living[0])
        self._next = chosen + 1
        return chosen
