"""Traces: what is drawn follows its table, and files are read or refused by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headway.core.errors import BadInput
from headway.serving.trace import LEVELS, TABLES, Trace, generate, read_csv


@pytest.mark.parametrize("name", sorted(TABLES))
def test_drawn_lengths_follow_the_table(name: str) -> None:
    trace = generate(name, 20_000, rate=5.0, seed=1)
    table = TABLES[name]
    middle = slice(3, 8)  # the tails' quantiles of a sample wander
    assert np.quantile(trace.prompt, LEVELS[middle]) == pytest.approx(table.prompt[middle], rel=0.08, abs=2)
    assert np.quantile(trace.output, LEVELS[middle]) == pytest.approx(table.output[middle], rel=0.08, abs=2)
    gaps = np.diff(trace.arrival)
    assert gaps.std() / gaps.mean() == pytest.approx(table.gap_cv, rel=0.25)


def test_a_trace_is_the_same_for_the_same_seed_and_can_be_slowed() -> None:
    first, second = generate("azure-conv", 100, 2.0, seed=3), generate("azure-conv", 100, 2.0, seed=3)
    assert np.array_equal(first.arrival, second.arrival) and np.array_equal(first.prompt, second.prompt)
    slow = first.at_rate(1.0)
    assert slow.rate == pytest.approx(1.0) and np.array_equal(slow.prompt, first.prompt)
    small = first.scaled(0.1, 100, 20)
    assert small.prompt.max() <= 100 and small.output.min() >= 1


def test_files_under_the_names_in_common_use(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrived_s,context_tokens,generated_tokens\n5,10,3\n4,20,1\n")
    trace = read_csv(path)
    assert (
        trace.arrival.tolist() == [0.0, 1.0] and trace.prompt.tolist() == [20, 10] and trace.output.tolist() == [1, 3]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arrived_s,context_tokens\n1,2\n", "no column 'generated_tokens'"),
        ("arrived_s,context_tokens,generated_tokens\n1,2,x\n", "line 2: generated_tokens='x'"),
        ("arrived_s,context_tokens,generated_tokens\n1,2,nan\n", "generated_tokens='nan'"),
        ("arrived_s,context_tokens,generated_tokens\n1,1e300,2\n", "at most 1e"),
        ("arrived_s,context_tokens,generated_tokens\n1,0,4\n", "no token of prompt or output"),
        ("", "no column"),
    ],
)
def test_files_that_are_no_traces_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=words):
        read_csv(path)


def test_arrivals_that_fall_are_refused() -> None:
    with pytest.raises(BadInput, match="never fall"):
        Trace(np.array([1.0, 0.5]), np.array([1, 1]), np.array([1, 1]))
