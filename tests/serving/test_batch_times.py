"""Times of batches: what a busy machine measures is used, and not kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from serving_traces import COST

from headway.core.progress import Progress
from headway.llm.language_model import LanguageModel
from headway.serving import measuring


@pytest.mark.parametrize(("load", "times"), [(0.1, 1), (1e3, 2)])
def test_the_times_of_a_busy_machine_are_not_kept(
    load: float, times: int, tiny_served: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    asked: list[int] = []

    def fit(*_: Any) -> Any:
        asked.append(1)
        return COST

    monkeypatch.setattr(measuring, "fit_runtime", fit)
    runtime: Any = tiny_served.runtime
    for _ in range(2):
        assert measuring.iteration_time(tiny_served, runtime, 1, Progress()) == COST
    assert len(asked) == times
