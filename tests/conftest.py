"""What holds for every test: Triton interprets its kernels; property tests have no deadline and repeat.

`--hypothesis-profile=anew`, which `make nightly` gives, draws other cases each time.

Fault suites hand their figures to the fixture `figures`; they are printed at the end, passed or failed.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A shell starts what it puts in the background with Ctrl-C ignored, and every child of ours would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by torch too

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("anew", deadline=None)
settings.load_profile("repeatable")

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


CHROMIUM = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)


@pytest.fixture(scope="module")  # its event loop would be in the way of tests that run their own
def browser() -> Iterator[Browser]:
    """The system's Chromium, headless, asking nothing of anybody."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium on this machine; run: apt-get install -y --no-install-recommends chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM))
        yield started
        started.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("figures of the fault suites")
        for line in lines:
            terminalreporter.write_line(line)
