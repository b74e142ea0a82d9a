"""What holds for every test: Triton interprets its kernels; property tests have no deadline and repeat.

Tests run on several processes at once (`pytest -n`): nothing that one leaves behind is needed by another.

`--hypothesis-profile=anew`, which `make nightly` gives, draws other cases each time.

Fault suites hand their figures to the fixture `figures`; they are printed at the end, passed or failed.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from known_machine import know

from headway.core import workload
from headway.hardware import calibrate

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A shell starts what it puts in the background with Ctrl-C ignored, and every child of ours would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by torch too

# Test processes share the cores: torch's threads spin while they wait for one that another process keeps off its core.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // WORKERS)))

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("anew", deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[..., None]:
    """figures(cases=200, worst_ulp=1.2): what a fault suite counted and its worst case."""

    def record(**found: object) -> None:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
            for name, value in found.items()
        )
        request.node.user_properties.append(("figures", f"{request.node.nodeid}: {shown}"))

    return record


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests timed on this machine so far, so that each kernel is timed once."""
    return tmp_path_factory.mktemp("targets")


calibration_text = cache(workload._calibration_text)


@pytest.fixture
def home(tmp_path: Path, learned: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own that knows this machine; what was learned of it is handed on.

    Docstrings of the standard library are read once, and a kernel is timed as shortly as may be.
    """
    folder = tmp_path / "home"
    monkeypatch.setenv("HEADWAY_HOME", str(folder))
    monkeypatch.setattr(workload, "_calibration_text", calibration_text)
    monkeypatch.setattr(calibrate, "Effort", partial(calibrate.Effort, point_s=0.005))
    targets = folder / "state" / "targets"
    if any(learned.iterdir()):
        shutil.copytree(learned, targets)
    else:
        know()
    yield folder
    shutil.copytree(targets, learned, dirs_exist_ok=True)


@pytest.fixture
def short_search(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that does everything fewer times, and counts memory instead of starting a process per candidate."""
    from headway.optimize import footprint, pipeline, search
    from headway.optimize.measuring import Bench

    def counted(model: Any, workload: Mapping[str, Any], threads: int) -> float:
        if model.task != "language":
            return footprint.counted_bytes(model)
        session = model.runtime.begin(int(workload["prompt_tokens"]) + 1)
        session.feed(np.zeros(int(workload["prompt_tokens"]), np.int64))
        return float(model.size_bytes() + session.nbytes)

    for name, fewer in (("ROUNDS", 2), ("PROPOSED", 4), ("SURVIVORS", 2), ("PROOF_ROUNDS", 8)):
        monkeypatch.setattr(pipeline, name, fewer)
    monkeypatch.setattr(search, "TRIALS", 20)
    monkeypatch.setattr(Bench, "metrics_limit_s", 0.0)  # the fewest pairs
    monkeypatch.setattr(footprint, "peak_bytes", counted)


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for found in terminalreporter.stats.values() for report in found]
    kept = (pair for report in reports if getattr(report, "when", "") == "call" for pair in report.user_properties)
    lines = sorted(text for name, text in kept if name == "figures")
    if lines:
        terminalreporter.section("figures of the fault suites")
        for line in lines:
            terminalreporter.write_line(line)
