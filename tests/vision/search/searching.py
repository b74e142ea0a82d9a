"""A small search for tests: made-up images of 16 pixels and a cost table that nobody measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from known_machine import GOLDEN

from headway.core.cache import StepCache
from headway.core.progress import Progress, Task
from headway.core.system import SearchContext
from headway.core.target import Target
from headway.vision.search.cost_table import CostTable
from headway.vision.search.family import NetSettings, Subject
from headway.vision.search.images import Images, Split
from headway.vision.search.network import Macro


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (80, 40, 40):
        labels = torch.arange(count) % 10
        pixels = 0.3 * torch.randn(count, 1, 16, 16, generator=generator)
        pixels[torch.arange(count), 0, labels, labels] += 3.0
        splits.append(Split(pixels, labels))
    return Images(*splits, classes=10)


def table(macro: Macro) -> CostTable:
    """Costs by the number of weights."""
    costs = {}
    for spec, size in macro.layers_in_use():
        costs[spec.key(size)] = 1e-6 * sum(p.numel() for p in spec.build().parameters())
    return CostTable(costs)


def subject(slug: str, macro: Macro, settings: NetSettings, folder: Path, progress: Progress | None = None) -> Subject:
    folder.mkdir(exist_ok=True)
    target = Target.load(GOLDEN)
    context = SearchContext(target, StepCache(folder / "steps"), folder, None, 0, progress or Progress())
    return Subject(slug, "d400", macro, images(), table(macro), settings, context)


class Stops(Progress):
    """Ctrl-C in a task whose name begins so, at its step `at`."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__()
        self.what, self.at = what, at

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        progress = self

        class Counting(Task):
            done = 0.0

            def advance(self, steps: float = 1) -> None:
                self.done += steps
                if what.startswith(progress.what) and self.done == progress.at:
                    raise KeyboardInterrupt

        yield Counting()
