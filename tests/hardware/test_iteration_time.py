"""The fitted time of a forward pass: it finds the law it was given, never falls with tokens, and refuses nonsense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load, fit

LAW = IterationTime((0, 16, 512), (2e-3, 2e-3, 5e-2), 3e-9, 2e-8, 1e-5, 4e-5)


def loads(count: int, seed: int = 0) -> list[Load]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        chunk, decodes = int(random.choice([0, 1, 4, 16, 64, 128, 256, 480])), int(random.integers(1, 33))
        made.append(
            Load(
                chunk + decodes,
                chunk * (int(random.integers(0, 1000)) + chunk / 2),
                decodes,
                decodes * int(random.integers(1, 2000)),
                decodes + (chunk > 0),
                decodes,
            )
        )
    return made


def test_it_finds_the_law_that_made_the_measurements() -> None:
    seen, fresh = loads(150), loads(60, seed=1)
    noise = np.random.default_rng(2).normal(1.0, 0.01, len(seen))
    found = fit(seen, [LAW(load) * n for load, n in zip(seen, noise, strict=True)])
    errors = [abs(found(load) / LAW(load) - 1.0) for load in fresh]
    assert np.median(errors) < 0.02 and max(errors) < 0.1


def test_time_never_falls_with_tokens_and_goes_on_beyond_the_last_knot() -> None:
    found = fit(loads(150), [LAW(load) for load in loads(150)])
    times = [found.linear(n) for n in range(1500)]
    assert (np.diff(times) >= -1e-12).all() and times[-1] > times[600]


def test_a_roofline_reads_or_multiplies_whichever_is_longer() -> None:
    cost = IterationTime.from_rates(14e9, 14e9, 5e5, 7e11, 7e13, 0.003)
    assert cost(Load(1)) == pytest.approx(0.023) == cost(Load(100))  # weights are read: 20 ms
    assert cost(Load(1000)) == pytest.approx(0.003 + 0.2)  # multiplied: 0.2 ms for each token
    assert cost(Load(1, decodes=1, decode_context=1400)) == pytest.approx(0.024)


@given(st.integers(1, 3000), st.integers(1, 64), st.integers(0, 100_000), st.integers(1, 20))
def test_passes_ahead_take_what_each_takes(tokens: int, decodes: int, context: int, passes: int) -> None:
    load = Load(tokens, 3.5, decodes, context, decodes, decodes)
    each = [LAW(load._replace(decode_context=context + n * decodes)) for n in range(passes)]
    assert LAW.ahead(load, passes) == each


def test_it_survives_json() -> None:
    assert IterationTime.from_json(LAW.as_json()) == LAW


@pytest.mark.parametrize(
    "document", [{}, {"knots": [0, 1]}, {"knots": [0, 0], "values_s": [1, 2]}, {"knots": "a", "values_s": [1]}]
)
def test_documents_that_are_none_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        IterationTime.from_json(document)


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(BadInput, match="measure more"):
        fit(loads(5), [1.0] * 5)
