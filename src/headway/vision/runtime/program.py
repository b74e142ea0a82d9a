"""`Program`: a network as native steps over registers, and what torch does between them.

What `lower` makes and `net` fills with values. Register 0 is the image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headway.vision.runtime.capture import Node
from headway.vision.runtime.steps import Step
from headway.vision.runtime.values import Apart, Known

Shape = tuple[int, int, int]
"""Height, width, channels."""
BLOCK = 32
"""Channels of what a step makes are padded to a multiple of this; what comes in is not."""


@dataclass(frozen=True)
class Place:
    """A value within a register: sizes and strides of one image over (pixels, channels) without padding."""

    register: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Call:
    """An operation that torch does, image by image; `given`: where its inputs are; `why` no step does it."""

    node: Node
    given: Mapping[Node, Place | Known | Apart]
    why: str


@dataclass(frozen=True)
class Bring:
    """A register takes what torch made: its channels are the axis `channel`, its pixels all others in order."""

    node: Node
    channel: int
    register: int


@dataclass
class Segment:
    """Steps of one crossing, with registers of their own.

    given: registers of the program that come in; they are the first ones here. kept: of the program, and here.
    """

    registers: list[Shape]
    steps: list[Step]
    given: list[int]
    kept: dict[int, int]


@dataclass
class Program:
    """parts in order; register 0 is the image. `result`: what the module gives, with a place for each tensor."""

    parts: list[Segment | Call | Bring]
    result: Any

    @property
    def apart(self) -> dict[str, str]:
        """Operations that torch does, and why."""
        return {part.node.name: part.why for part in self.parts if isinstance(part, Call) and part.why}


def split(
    registers: Sequence[Shape], steps: Sequence[Step | Call | Bring], bare: Collection[int], results: Collection[int]
) -> list[Segment | Call | Bring]:
    """Native steps that follow one another become a segment, with what comes in and what is wanted later.

    bare: registers that no step makes. results: registers that the module gives.
    """
    runs: list[list[Step] | Call | Bring] = []
    for step in steps:
        if not isinstance(step, Step):
            runs.append(step)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(step)
        else:
            runs.append([step])
    wanted, parts = set(results), list[Segment | Call | Bring]()
    for run in reversed(runs):
        if isinstance(run, list):
            segment = _segment(registers, run, bare, wanted)
            if segment.kept:
                wanted |= set(segment.given)
                parts.append(segment)
            continue
        if isinstance(run, Call):
            wanted |= {value.register for value in run.given.values() if isinstance(value, Place)}
        parts.append(run)
    return parts[::-1]


def _segment(
    registers: Sequence[Shape], steps: Sequence[Step], bare: Collection[int], wanted: Collection[int]
) -> Segment:
    written = {step.to for step in steps}
    given = sorted({r for step in steps for r in step.reads()} - written)
    here = {r: at for at, r in enumerate(given)}
    shapes, filled = [registers[r] for r in given], list[Step]()
    for r in given:
        if r not in bare and registers[r][2] % BLOCK:  # it was made with padding, and comes in without
            filled.append(Step("take", [here[r]], len(shapes), {"begin": 0}))
            here[r] = len(shapes)
            shapes.append(registers[r])
    for step in steps:
        here[step.to] = len(shapes)
        shapes.append(registers[step.to])
        filled.append(step.renumbered(here))
    return Segment(shapes, filled, given, {r: here[r] for r in sorted(written & set(wanted))})
