"""Fixtures of the core's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clock import Machine

from headway.core import measure


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Makes machines; `compare` reads the clock of the last one made."""

    def make(seed: int = 0, **noise: float) -> Machine:
        made = Machine(seed, **noise)  # type: ignore[arg-type]
        monkeypatch.setattr(measure.time, "perf_counter", made.perf_counter)
        return made

    return make
