"""The proof of `lut-gemm` on a tiny random model: its bars are met by the system and missed when it is broken.

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
from headway.core.progress import Task
from headway.core.proof import ProofContext
from headway.core.workload import Texts
from headway.llm.load import load
from headway.llm.weights import kernel_timing, proof_quality
from headway.llm.weights import lut_gemm_proof as proof
from headway.llm.weights import lut_gemm_quality as quality
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.lut_gemm import LutGemm
from headway.llm.weights.quantizers import rtn


@pytest.fixture
def context(tiny: TinyFolder, tmp_path, monkeypatch) -> ProofContext:
    pages = Path(proof.__file__).read_text() * 3
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(proof_quality, "default_texts", lambda: Texts(pages, pages, pages, "source code"))
    monkeypatch.setattr(proof_quality, "WINDOW", 64)
    monkeypatch.setattr(proof_quality, "WINDOWS", 4)
    monkeypatch.setattr(proof_quality, "CALIBRATION_WINDOWS", 6)
    return ProofContext(UNMEASURED, lambda _: load(tiny.path), model="tiny", quick=True, threads=1)


def empty() -> Evidence:
    return Evidence.begin("prove", "lut-gemm", UNMEASURED, 0, 1)


def bars(evidence: Evidence, start: str) -> dict[str, bool]:
    return {bar.name: bar.met for bar in evidence.bars if bar.name.startswith(start)}


def test_the_whole_proof_judges_every_claim_and_keeps_its_samples(context):
    evidence = proof.prove(context)
    counts = {start: len(bars(evidence, start)) for start in ("exact", "roof", "speed", "quality", "the kernels ran")}
    assert counts == {"exact": 4, "roof": 2, "speed": 7, "quality": 4, "the kernels ran": 1}
    assert all(bars(evidence, "exact").values())
    assert all(bars(evidence, "the kernels ran").values())
    assert bars(evidence, "quality: rounding, clip search") == dict.fromkeys(
        bars(evidence, "quality: rounding, clip search"), True
    )
    arms = {(series.measurement, series.arm) for series in evidence.series}
    assert ("tpot_s", AGAIN) in arms
    assert ("one layer in cache, 1 thread", AGAIN) in arms
    assert ("ln p of a token", "float") in arms
    assert Evidence.from_json(evidence.to_json()).bars == evidence.bars


def test_a_product_that_is_off_misses_the_exactness_bars(monkeypatch):
    matmul, by_float = BitPlanes.matmul, BitPlanes.matmul_float
    evidence = empty()
    monkeypatch.setattr(BitPlanes, "matmul", lambda self, x: matmul(self, x) * np.float32(1.02))
    monkeypatch.setattr(BitPlanes, "matmul_float", lambda self, x: by_float(self, x) * np.float32(1.0001))
    proof.exactness(evidence, 0)
    met = list(bars(evidence, "exact").values())
    assert met == [False, False, False, True]


def test_quantisation_that_is_only_pretended_is_found_out(context, monkeypatch):
    def pretend(self: LutGemm, matrix: Any, settings: Any) -> DenseWeight:
        return DenseWeight(rtn(matrix.value, settings.bits, settings.group_size).dequantize())

    monkeypatch.setattr(LutGemm, "make", pretend)
    evidence = empty()
    proof.decode(evidence, context.load("").with_runtime("native", 1), 1e-5, context)
    assert not any(bars(evidence, "the kernels ran").values())


def test_feedback_that_is_switched_off_misses_its_bar(context, monkeypatch):
    monkeypatch.setattr(quality, "CASES", quality.CASES[:2])
    monkeypatch.setattr(
        "headway.llm.weights.lut_gemm.gptq", lambda w, hessian, bits, group, **more: rtn(w, bits, group)
    )
    evidence = empty()
    quality.quality(evidence, context.load(""), context)
    assert list(bars(evidence, "quality: 3 bits, gptq").values()) == [False]


def test_blocks_of_a_file_are_copied_or_the_bar_is_missed(smollm2, monkeypatch):
    evidence = empty()
    quality._copies(evidence, smollm2)
    assert list(bars(evidence, "quality: the file").values()) == [True]
    monkeypatch.setattr("headway.llm.weights.lut_gemm_quality.BitPlanes.dequantize", lambda self: np.zeros(self.shape))
    quality._copies(evidence, smollm2)
    assert not evidence.bars[-1].met


def test_rounds_run_every_arm_and_keep_the_lower_quartile():
    calls: list[str] = []

    def arm(name: str, seconds: list[float]) -> Any:
        def run() -> np.ndarray:
            calls.append(name)
            return np.array(seconds) * (9.0 if calls.count(name) % 5 == 0 else 1.0)

        return run

    timing = kernel_timing.interleave({"a": arm("a", [1.0, 2.0]), "b": arm("b", [4.0, 2.0])}, "a", 3, 0, Task())
    assert calls.count("a") == 2 * calls.count("b") == 2 * 3 * kernel_timing.SAMPLE_ROUNDS
    assert timing.samples["b"] == [6.0] * 3
    assert timing.rounds == 3
    assert kernel_timing.ratio(timing, "b", AGAIN) == pytest.approx(2.0)
