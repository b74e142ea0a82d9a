"""`SearchSpace`: named choices, some of which exist only where another has a certain value."""

from __future__ import annotations

import random
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput

Value = int | float | str
Genotype = dict[str, Value]
"""The active choices with their values, in the space's order."""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """One decision. `when`: (choice, values): it exists only where that choice has one of those values."""

    name: str
    options: tuple[Value, ...]
    when: tuple[str, tuple[Value, ...]] | None = None
    group: str = ""
    """Choices of one group are redrawn together by a mutation; by default each is its own."""
    encoded: bool = True
    """Whether it has a part of its own in the encoding; one that others' presence tells needs none."""


class SearchSpace:
    """Choices in order (a choice comes after the one it hangs on), and pairs of values that exclude each other."""

    def __init__(
        self, choices: Sequence[Choice], forbidden: Sequence[tuple[tuple[str, Value], tuple[str, Value]]] = ()
    ) -> None:
        """Raises `BadInput` for a choice without options, named twice, or hanging on one that comes later."""
        self.choices = tuple(choices)
        self.by_name: dict[str, Choice] = {}
        for choice in self.choices:
            if not choice.options or len(set(choice.options)) != len(choice.options):
                raise BadInput(f"choice {choice.name!r} has options {choice.options}", "give each option once")
            if choice.name in self.by_name:
                raise BadInput(f"two choices are named {choice.name!r}", "rename one")
            if choice.when is not None:
                parent, values = choice.when
                if parent not in self.by_name or not set(values) <= set(self.by_name[parent].options):
                    raise BadInput(f"{choice.name} hangs on {parent}={list(values)}", "put that choice before it")
            self.by_name[choice.name] = choice
        self.forbidden: dict[tuple[str, Value], set[tuple[str, Value]]] = {}
        for one, other in forbidden:
            self.forbidden.setdefault(one, set()).add(other)
            self.forbidden.setdefault(other, set()).add(one)
        self._restricted = {name for name, _ in self.forbidden}
        self._hanging: dict[str, list[Choice]] = {}
        for choice in self.choices:
            if choice.when is not None:
                self._hanging.setdefault(choice.when[0], []).append(choice)
        self._at: dict[str, int] = {}
        self.width = 0
        for choice in self.choices:
            if choice.encoded:
                self._at[choice.name] = self.width
                self.width += len(choice.options)

    def size(self) -> int:
        """How many genotypes there are, those with forbidden pairs included."""
        count = 1
        for choice in self.choices:
            if choice.when is None:
                count *= self._below(choice)
        return count

    def _below(self, choice: Choice) -> int:
        total = 0
        for value in choice.options:
            product = 1
            for other in self._hanging.get(choice.name, ()):
                if other.when is not None and value in other.when[1]:
                    product *= self._below(other)
            total += product
        return total

    def _active(self, choice: Choice, values: Mapping[str, Value]) -> bool:
        return choice.when is None or values.get(choice.when[0]) in choice.when[1]

    def allowed(self, choice: Choice, values: Mapping[str, Value]) -> list[Value]:
        """The options of a choice that no value already taken forbids."""
        if choice.name not in self._restricted:
            return list(choice.options)
        taken = set(values.items())
        return [v for v in choice.options if not self.forbidden.get((choice.name, v), set()) & taken]

    def random(self, rng: random.Random, given: Mapping[str, Value] | None = None) -> Genotype:
        """A genotype with every free choice drawn uniformly among what is allowed; `given` values are kept."""
        made: Genotype = {}
        for choice in self.choices:
            if not self._active(choice, made):
                continue
            options = self.allowed(choice, made)
            wanted = (given or {}).get(choice.name)
            made[choice.name] = wanted if wanted is not None and wanted in options else rng.choice(options)
        return made

    def enumerate(self) -> Iterator[Genotype]:
        """Every valid genotype, in the order of the options."""

        def from_(index: int, made: Genotype) -> Iterator[Genotype]:
            if index == len(self.choices):
                yield dict(made)
                return
            choice = self.choices[index]
            if not self._active(choice, made):
                yield from from_(index + 1, made)
                return
            for value in self.allowed(choice, made):
                yield from from_(index + 1, {**made, choice.name: value})

        yield from from_(0, {})

    def check(self, genotype: Mapping[str, Value]) -> Genotype:
        """The genotype in the space's order; raises `BadInput` naming the choice that is wrong."""
        made: Genotype = {}
        for choice in self.choices:
            if not self._active(choice, made):
                continue
            value = genotype.get(choice.name)
            if value not in choice.options:
                raise BadInput(
                    f"{choice.name}={value} is no option", f"options are: {', '.join(map(str, choice.options))}"
                )
            if value not in self.allowed(choice, made):
                raise BadInput(f"{choice.name}={value} is forbidden here", "see the space's forbidden pairs")
            made[choice.name] = value
        if extra := set(genotype) - set(made):
            raise BadInput(f"{sorted(extra)[0]!r} is no choice here", f"choices are: {', '.join(made)}")
        return made

    def encode(self, genotype: Mapping[str, Value]) -> Vector:
        """One-hot, float32 [width]; choices that are not active stay zero."""
        vector = np.zeros(self.width, np.float32)
        for name, value in genotype.items():
            if name in self._at:
                vector[self._at[name] + self.by_name[name].options.index(value)] = 1
        return vector

    def decode(self, vector: npt.NDArray[Any]) -> Genotype:
        """The inverse of `encode`; a choice without a part of its own is what makes the others' presence true."""
        seen: Genotype = {}
        for name, at in self._at.items():
            part = vector[at : at + len(self.by_name[name].options)]
            if part.any():
                seen[name] = self.by_name[name].options[int(part.argmax())]
        made: Genotype = {}
        for choice in self.choices:
            if not self._active(choice, made):
                continue
            if choice.encoded:
                if choice.name not in seen:
                    raise BadInput(f"the encoding says nothing of {choice.name}", "encode a genotype of this space")
                made[choice.name] = seen[choice.name]
                continue
            told = self._told(choice, seen)
            if told is None:
                raise BadInput(f"the encoding does not tell {choice.name}", "encode a genotype of this space")
            made[choice.name] = told
        return made

    def _told(self, choice: Choice, there: Container[str]) -> Value | None:
        """The option under which just those choices are active that are there; None where no one option fits."""
        hanging = self._hanging.get(choice.name, ())
        fitting = [
            value
            for value in choice.options
            if all((value in (other.when or ("", ()))[1]) == (other.name in there) for other in hanging)
        ]
        return fitting[0] if len(fitting) == 1 else None

    def told(self, parts: Mapping[str, Value]) -> Genotype | None:
        """The genotype of which these are the choices that have a part in the encoding; None where they contradict.

        Choices without such a part (depths) follow from which others are there.
        """
        made: Genotype = {}
        for choice in self.choices:
            if not self._active(choice, made):
                if choice.name in parts:
                    return None
                continue
            value = parts.get(choice.name) if choice.encoded else self._told(choice, parts)
            if value is None or value not in self.allowed(choice, made):
                return None
            made[choice.name] = value
        return made

    def text(self, genotype: Mapping[str, Value]) -> str:
        """`1=k3e6 2=zero ...`: what `parse` reads, and what an artifact's origin holds."""
        return " ".join(f"{name}={value}" for name, value in self.check(genotype).items())

    def parse(self, text: str) -> Genotype:
        """Raises `BadInput` naming the choice that is unknown, missing or wrong."""
        given: Genotype = {}
        for part in text.split():
            name, equals, word = part.partition("=")
            choice = self.by_name.get(name)
            if not equals or choice is None:
                raise BadInput(f"genotype: {part!r} names no choice", f"choices are: {', '.join(self.by_name)}")
            found = [value for value in choice.options if str(value) == word]
            if not found:
                raise BadInput(
                    f"genotype: {name}={word} is no option", f"options are: {', '.join(map(str, choice.options))}"
                )
            given[name] = found[0]
        return self.check(given)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Names of choices by the group in which they mutate."""
        found: dict[str, list[str]] = {}
        for choice in self.choices:
            found.setdefault(choice.group or choice.name, []).append(choice.name)
        return found
