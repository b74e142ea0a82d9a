"""What a report says of a load run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_example import loaded

from headway.core.evidence import Evidence
from headway.optimize.report.load import load
from headway.optimize.report.load_charts import colours, load_data, rows, signed
from headway.optimize.report.reading import run_of
from headway.optimize.report.words import headline, verdict


def test_each_figure_stands_beside_the_simulators_with_its_error() -> None:
    run = loaded(rates=(0.4,))
    real, guess = run.loads
    table = {row.what: row for row in rows(run.loads)}
    assert table["Time to first token, median"].error == pytest.approx(guess.ttft_s[50] / real.ttft_s[50] - 1)
    assert table["Time between tokens, p99"].error == pytest.approx(guess.tbt_s[99] / real.tbt_s[99] - 1)
    assert table["Requests within the limits"].error is None
    assert (signed(0.0821), signed(-0.5), signed(None)) == ("+8.2%", "−50.0%", "")


def test_a_run_without_a_token_is_shown_without_figures() -> None:
    run = loaded(rates=(0.4,))
    empty = replace(run, loads=tuple(replace(one, ttft_s=(), tbt_s=(), finished=0) for one in run.loads))
    table = {row.what: row for row in rows(empty.loads)}
    assert table["Time to first token, median"].engine == "–" and load(empty)
    assert load_data(empty.loads)["runs"][0]["ttft"] == []


def test_the_verdict_names_the_rates_that_held() -> None:
    run = loaded(rates=(0.4, 0.8))

    def attained(*shares: float) -> str:
        pairs = zip(run.loads, (share for share in shares for _ in range(2)), strict=True)
        loads = tuple(replace(one, attainment=share) for one, share in pairs)
        return verdict(replace(run, loads=loads, met=min(shares) >= 0.99))

    assert attained(1.0, 0.99).endswith("at each.")
    assert attained(1.0, 0.5).endswith("at 0.4/s only.")
    assert "at none of them" in attained(0.9, 0.5)
    assert headline(replace(run, met=True)) == "Within the limits"
    free = loaded(limits=False, rates=(0.4,))
    assert headline(free) == "Measured" and "no limits" in verdict(free)
    assert "within the limits, by rate" in load(run) and "within the limits, by rate" not in load(free)


def test_colours_go_from_the_lowest_rate_to_the_highest() -> None:
    (one, _) = loaded(rates=(1.0,)).loads
    for count in (1, 2, 3, 6, 12):
        found = colours([replace(one, rate=float(rate)) for rate in range(1, count + 1)])
        places = [found[float(rate)] for rate in range(1, count + 1)]
        assert places == sorted(places) and set(places) <= set(range(1, 7)) and places[-1] == (6 if count > 1 else 1)


def test_evidence_becomes_a_run_with_rising_rates_the_engine_first() -> None:
    run = loaded(rates=(0.4, 0.8))
    evidence = Evidence("bench", "m", {"name": "here", "fingerprint": "f"}, 0, 1, load_runs=list(reversed(run.loads)))
    evidence.result = {"met": False, "share": 0.99, "workload": {"limits": "ttft<=1s"}}
    read = run_of(Evidence.from_json(evidence.to_json()), "r1")
    assert read.loads == run.loads and (read.met, read.share) == (False, 0.99)
