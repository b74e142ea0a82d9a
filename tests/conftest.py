"""What holds for every test: Triton interprets its kernels, property tests have no deadline on a busy machine.

Fault suites hand their figures to the fixture `figures`; they are printed at the end, passed or failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import settings

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by torch too

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """figures(cases=200, worst_ulp=1.2): what a fault suite counted and its worst case."""

    def record(**found: object) -> None:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
            for name, value in found.items()
        )
        request.config.stash.setdefault(FIGURES, []).append(f"{request.node.nodeid}: {shown}")

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("figures of the fault suites")
        for line in lines:
            terminalreporter.write_line(line)
