"""The verdict says what was met and by how much, and a difference inside the noise is none."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from report_example import example, proof

from headway.optimize.report.hero import hero
from headway.optimize.report.metrics import METRICS, metric, percent, significant
from headway.optimize.report.run import Limit, Ratio
from headway.optimize.report.words import change, headline, ratio_words, standing, verdict


def test_a_met_budget_says_what_was_gained() -> None:
    run = example()
    assert headline(run) == "Budget met"
    assert verdict(run) == (
        "smollm2-135m at 71.2\u202fMB (7.56× smaller), 5.02\u202fms/token (3.62× faster in pairs), quality 0.9816."
    )


def test_without_a_budget_quality_stands_beside_speed_and_size_and_nothing_is_green() -> None:
    run = replace(example(), limits=(), objective="tpot_s")
    assert headline(run) == "Done"
    assert verdict(run) == (
        "smollm2-135m at 5.02\u202fms/token (3.62× faster in pairs), 71.2\u202fMB (7.56× smaller), quality 0.9816."
    )
    assert 'class="card hero yes"' in str(hero(example()))
    assert 'class="card hero "' in str(hero(run))


def test_a_missed_budget_says_by_how_much_the_nearest_misses() -> None:
    run = example(met=False)
    assert headline(run) == "Budget not met"
    assert verdict(run).endswith("The nearest misses quality by 1.8% (0.9620 against at least 0.98).")


def test_a_proof_counts_its_bars() -> None:
    assert headline(proof()) == "The claim holds here"
    assert verdict(proof()).startswith("lut-gemm: all bars hold against")
    assert headline(proof(met=False)) == "The claim does not hold here"
    assert "1 of 2 bars hold" in verdict(proof(met=False))


@pytest.mark.parametrize(
    ("op", "limit", "here", "met", "words"),
    [
        ("<=", 0.006, 0.003, True, "50% to spare"),
        ("<=", 0.006, 0.0072, False, "missed by 20%"),
        (">=", 0.98, 0.98, True, "just met"),
        (">=", 0.98, 0.49, False, "missed by 50%"),
        ("<=", 0.006, None, False, "not measured"),
        ("<=", 0.0, 0.1, False, "missed"),
        ("<=", 0.02, 1.82, False, "missed by far, at 91.0× the limit"),
    ],
)
def test_how_a_limit_stands(op: str, limit: float, here: float | None, met: bool, words: str) -> None:
    found = Limit("tpot_s", op, limit, here)
    assert (found.met, standing(found)) == (met, words)


def test_change_follows_which_way_is_better() -> None:
    assert change("size_bytes", 100.0, 25.0) == "4.00× smaller"
    assert change("tpot_s", 1.0, 2.0) == "2.00× slower"
    assert change("throughput_tok_s", 10.0, 30.0) == "3.00× more"
    assert change("tpot_s", 1.0, 1.001) == "the same"
    assert change("quality", 1.0, 0.9) == ""
    assert change("tpot_s", None, 1.0) == ""


def test_a_ratio_is_only_called_faster_when_the_statistics_say_so() -> None:
    faster = Ratio("tpot_s", "a", "b", 0.5, 0.49, 0.51, 30, 0.02, "faster")
    assert ratio_words(faster) == "2.00× faster"
    assert ratio_words(replace(faster, value=0.99, low=0.98, high=1.01, verdict="none")).startswith("no difference")
    assert ratio_words(replace(faster, low=0.0, high=math.inf, n=3)) == "too few pairs (3) to say"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("tpot_s", 0.00412, "4.12\u202fms/token"),
        ("latency_s", 2.5e-5, "25.0\u202fµs"),
        ("size_bytes", 90e6, "90.0\u202fMB"),
        ("memory_bytes", 1.234e9, "1.23\u202fGB"),
        ("quality", 0.99961, "0.9996"),
        ("throughput_tok_s", 1234.0, "1.23\u202fk"),
        ("my_own_bytes", 2048.0, "2.05\u202fkB"),
        ("tpot_s", math.nan, "–"),
    ],
)
def test_values_are_written_in_the_unit_that_reads_best(key: str, value: float, text: str) -> None:
    assert metric(key).write(value) == text


def test_numbers_keep_three_digits() -> None:
    assert [significant(v) for v in (0, 1, 12.345, 0.999, 999.6, 1234567, 1e-7)] == [
        "0",
        "1.00",
        "12.3",
        "0.999",
        "1\u202f000",
        "1\u202f230\u202f000",
        "1.00e-07",
    ]
    assert [percent(v) for v in (0.0123, 0.5, 12.0, math.inf)] == ["1.2%", "50%", "1\u202f200%", "unknown"]


def test_a_limit_is_written_as_it_was_chosen() -> None:
    assert METRICS["tpot_s"].write(0.006, exact=True) == "6\u202fms/token"
    assert METRICS["size_bytes"].write(90e6, exact=True) == "90\u202fMB"
