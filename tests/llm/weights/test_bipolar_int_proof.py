"""The proof of `bipolar-int` on a tiny random model: its bars are met by the system and missed when it is broken.

Nothing here looks at a time: on a model of a few kilobytes the bars about speed mean nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_machine import UNMEASURED
from tiny_models import TinyFolder

from headway.core.evidence import Evidence
from headway.core.measure import AGAIN
from headway.core.proof import ProofContext
from headway.core.workload import Texts
from headway.kernels.cpu import _cpu
from headway.kernels.gpu.bipolar_traffic import Product
from headway.llm.load import load
from headway.llm.weights import bipolar_int_bench as bench
from headway.llm.weights import bipolar_int_exact as exact
from headway.llm.weights import bipolar_int_proof as proof
from headway.llm.weights import bipolar_int_quality as quality
from headway.llm.weights import proof_quality
from headway.llm.weights.bipolar import BipolarWeight
from headway.llm.weights.bipolar_int import BipolarInt
from headway.llm.weights.dense import DenseWeight


@pytest.fixture
def context(tiny: TinyFolder, tmp_path, monkeypatch) -> ProofContext:
    pages = Path(proof.__file__).read_text() * 3
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(proof_quality, "default_texts", lambda: Texts(pages, pages, pages, "source code"))
    monkeypatch.setattr(proof_quality, "WINDOW", 64)
    monkeypatch.setattr(proof_quality, "WINDOWS", 4)
    monkeypatch.setattr(proof_quality, "CALIBRATION_WINDOWS", 6)
    monkeypatch.setattr(bench, "ROWS", 64)
    monkeypatch.setattr(exact, "COLUMNS", (1, 65))
    monkeypatch.setattr(exact, "TRITON_COLUMNS", (31,))
    monkeypatch.setattr(exact, "triton_apart", lambda seed: (*exact.triton_mismatches(seed, "cpu"), "interpreted"))
    return ProofContext(UNMEASURED, lambda _: load(tiny.path), model="tiny", quick=True, threads=1)


def empty() -> Evidence:
    return Evidence.begin("prove", "bipolar-int", UNMEASURED, 0, 1)


def bars(evidence: Evidence, start: str) -> dict[str, bool]:
    return {bar.name: bar.met for bar in evidence.bars if bar.name.startswith(start)}


def test_the_whole_proof_judges_every_claim_and_keeps_its_samples(context):
    evidence = proof.prove(context)
    starts = ("exact", "law", "speed: decoding products", "speed", "quality", "traffic", "the kernels ran")
    counts = {start: len(bars(evidence, start)) for start in starts}
    levels = counts["law"] // 3
    assert levels in (1, 2)
    assert counts["law"] == 3 * levels
    assert counts["speed: decoding products"] in (3 * levels, 3 * levels + 1)
    assert counts["speed"] == counts["speed: decoding products"] + 3
    assert (counts["exact"], counts["quality"], counts["traffic"], counts["the kernels ran"]) == (3, 3, 1, 1)
    for start in ("exact", "traffic", "the kernels ran", "speed: weight bytes", "quality: 2 bits"):
        assert all(bars(evidence, start).values()), start
    arms = {(series.measurement, series.arm) for series in evidence.series}
    assert ("tpot_s", AGAIN) in arms
    assert ("ln p of a token", "float") in arms
    assert Evidence.from_json(evidence.to_json()).bars == evidence.bars


def test_a_wrong_integer_misses_the_exactness_bars(context, monkeypatch):
    integers = _cpu.bipolar_integers
    monkeypatch.setattr(_cpu, "bipolar_integers", lambda weight, x: integers(weight, x) + (len(x) == 3))
    monkeypatch.setattr(exact, "triton_mismatches", lambda seed, device: (1, 100))
    monkeypatch.setattr(
        BipolarWeight, "dequantize", lambda self, kept=BipolarWeight.dequantize: kept(self) * np.float32(1.00001)
    )
    evidence = empty()
    exact.exactness(evidence, 0)
    assert list(bars(evidence, "exact").values()) == [False, False, False]


def test_quantisation_that_is_only_pretended_is_found_out(context, monkeypatch):
    def pretend(self: BipolarInt, matrix: Any, settings: Any) -> DenseWeight:
        return DenseWeight(matrix.value)

    monkeypatch.setattr(BipolarInt, "make", pretend)
    evidence = empty()
    proof.decode(evidence, context.load("").with_runtime("native", 1), context)
    assert not any(bars(evidence, "the kernels ran").values())


def test_a_schedule_that_writes_plane_by_plane_or_is_wrong_misses_its_bar(monkeypatch):
    recover = Product.recover
    monkeypatch.setattr(Product, "recover", Product.planes)
    evidence = empty()
    proof.traffic(evidence)
    assert not evidence.bars[-1].met

    def off(self: Product, *operands: Any) -> Any:
        made = recover(self, *operands)
        if operands:
            made.arrays["y"][0, 0] += 1
        return made

    monkeypatch.setattr(Product, "recover", off)
    proof.traffic(evidence)
    assert not evidence.bars[-1].met


def test_a_poor_quantiser_of_two_bits_is_seen_on_gaussian_weights(monkeypatch):
    evidence = empty()
    quality.gaussian(evidence, 0)
    assert evidence.bars[-1].met
    kept = quality.bipolar
    monkeypatch.setattr(quality, "bipolar", lambda w, bits, group: kept(w, bits, group, clip=False))
    quality.gaussian(evidence, 0)
    assert not evidence.bars[-1].met


def test_r2_is_that_of_a_straight_line():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert proof.linear_r2(x, 3 * x + 1) == pytest.approx(1)
    y = np.array([1.0, -1.0, 1.0, -1.0])
    assert proof.linear_r2(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
