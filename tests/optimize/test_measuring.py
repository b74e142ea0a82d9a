"""Times of one search compare, whatever load the machine was under when each was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.cache import StepCache
from headway.core.evidence import Evidence
from headway.core.measure import Timing
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.optimize.candidate import Candidate
from headway.optimize.measuring import BASELINE, UNMODIFIED, Bench
from headway.optimize.result import heard

INT8, INT4 = Recipe.read("int8"), Recipe.read("int4")


class Stub:
    """Stands for the model, the subject and the context: nothing but times is asked here."""

    def size_bytes(self) -> int:
        return 1

    def units(self, split: str) -> int:
        return 1

    progress = Progress()


class Loaded(Bench):
    """A bench on a machine that is `load` times slower in each of its runs; recipes take `seconds` when it is idle."""

    def __init__(self, seconds: Mapping[str, float], loads: list[float], units: int) -> None:
        super().__init__(Stub(), Stub())  # type: ignore[arg-type]
        self.seconds, self.loads, self.units = seconds, loads, units
        self.scored: list[str] = []

    def model(self, recipe: Recipe) -> Any:
        return Stub()

    def memory(self, recipe: Recipe) -> float:
        return 1.0

    def qualities(self, recipes: Sequence[Recipe], split: Any, *_: Any, **__: Any) -> list[dict[str, float]]:
        self.scored.append(split)
        return [{"quality": 1.0} for _ in recipes]

    def timings(self, recipes: Mapping[str, Recipe], rounds: int, purpose: str) -> dict[str, tuple[Timing, int]]:
        load = self.loads.pop(0)
        arms = {BASELINE: UNMODIFIED, **recipes}
        samples = {
            name: [load * wave * self.seconds[str(recipe)] * self.units for wave in (1.0, 1.5, 1.25, 1.0, 2.0)]
            for name, recipe in arms.items()
        }
        return {"tpot_s": (Timing(BASELINE, 0, samples, dict.fromkeys(arms, 1)), self.units)}


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.sampled_from([1, 8]))
def test_rounds_under_different_load_give_times_that_compare(first: float, second: float, units: int) -> None:
    seconds = {str(UNMODIFIED): 2.0, str(INT8): 1.0, str(INT4): 3.0}
    bench = Loaded(seconds, [1.0, first, second], units)
    original = bench.measure([Candidate(UNMODIFIED)], 1)[0].measured
    assert original["tpot_s"] == pytest.approx(1.25 * 2.0)
    for recipe in (INT8, INT4):
        measured = bench.measure([Candidate(recipe)], 1)[0].measured
        assert measured["tpot_s"] == pytest.approx(1.25 * seconds[str(recipe)])
        assert measured["throughput_tok_s"] == pytest.approx(1 / measured["tpot_s"])


class Slow(Stub):
    """A model whose forward pass takes three seconds of a clock of its own."""

    cache: StepCache | None = None
    seed = 0

    def __init__(self) -> None:
        self.now = 0.0
        self.model = self

    def clocks(self, model: Any) -> dict[str, Any]:
        return {"latency_s": (self.wait, 1)}

    def wait(self) -> None:
        self.now += 3.0


@pytest.mark.parametrize(("patience_s", "pairs"), [(100.0, 7), (30.0, 3)])
def test_a_slow_model_is_timed_for_as_many_pairs_as_say_something(
    patience_s: float, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr("headway.core.measure.time.perf_counter", lambda: slow.now)
    monkeypatch.setattr(Bench, "model", lambda self, recipe: slow)
    bench = Bench(slow, slow, patience_s=patience_s)  # type: ignore[arg-type]
    timing, _ = bench.timings({"winner": INT8}, 40, "proof")["latency_s"]
    assert timing.rounds == pairs


@pytest.mark.parametrize(
    ("asked", "purpose", "pairs"), [(True, "search", 8), (False, "search", 3), (False, "proof", 8)]
)
def test_the_first_token_is_timed_in_full_where_it_is_asked_for_and_in_the_proof(
    asked: bool, purpose: str, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    slow.clocks = lambda model: {"ttft_s": (lambda: None, 1), "tpot_s": (lambda: None, 1)}  # type: ignore[method-assign]
    monkeypatch.setattr(Bench, "model", lambda self, recipe: slow)
    found = Bench(slow, slow, ttft_asked=asked).timings({"winner": INT8}, 24, purpose)  # type: ignore[arg-type]
    assert {metric: timing.rounds for metric, (timing, _) in found.items()} == {"ttft_s": pairs, "tpot_s": 24}


def test_a_longer_time_times_a_slow_model_again_and_the_same_time_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    slow.cache = StepCache(tmp_path)
    monkeypatch.setattr("headway.core.measure.time.perf_counter", lambda: slow.now)
    monkeypatch.setattr(Bench, "model", lambda self, recipe: slow)
    monkeypatch.setattr(Bench, "_key", lambda self, cache, *parts: cache.key(*parts))
    pairs = []
    for patience_s in (30.0, 30.0, 100.0, 30.0, 100.0):
        before = slow.now
        bench = Bench(slow, slow, patience_s=patience_s)  # type: ignore[arg-type]
        timing, _ = bench.timings({"winner": INT8}, 40, "proof")["latency_s"]
        pairs.append((timing.rounds, slow.now > before))
    assert pairs == [(3, True), (3, False), (7, True), (3, False), (7, False)]


def test_a_search_never_sees_what_the_proof_is_scored_on() -> None:
    bench = Loaded({str(UNMODIFIED): 2.0, str(INT8): 1.0}, [1.0, 1.0, 1.0], 1)
    bench.measure([Candidate(UNMODIFIED)], 1)
    bench.measure([Candidate(INT8)], 1)
    assert set(bench.scored) == {"search"}
    bench.scored.clear()
    evidence = Evidence.__new__(Evidence)
    evidence.add_timing = lambda *_, **__: None  # type: ignore[method-assign]
    bench.prove(Candidate(INT8), evidence, 5)
    assert set(bench.scored) == {"heldout"}


def test_a_proof_says_what_it_took_then() -> None:
    bench = Loaded({str(UNMODIFIED): 2.0, str(INT8): 1.0}, [1.0, 3.0], 1)
    bench.measure([Candidate(UNMODIFIED)], 1)
    evidence = Evidence.__new__(Evidence)
    evidence.add_timing = lambda *_, **__: None  # type: ignore[method-assign]
    proven, original = bench.prove(Candidate(INT8), evidence, 5)
    assert proven.measured["tpot_s"] == pytest.approx(3 * 1.25)
    assert original["tpot_s"] == pytest.approx(3 * 2.5)
    assert original["throughput_tok_s"] == pytest.approx(1 / 7.5)


def test_only_systems_of_the_recipe_are_heard() -> None:
    notes = ["dfloat11: a matrix was rounded", "int4: said", "module was calibrated on its own sample"]
    assert heard(notes, Recipe.parse("int4")) == notes[1:]
    assert heard(notes, Recipe.parse("dfloat11")) == [notes[0], notes[2]]
