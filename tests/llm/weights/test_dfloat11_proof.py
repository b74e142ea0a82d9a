"""The proof of `dfloat11` on a tiny random model: its bars are met by the system and missed when it is broken.

Nothing here looks at a time: on a model of a few kilobytes the bars about speed mean nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from known_machine import UNMEASURED
from test_dfloat11 import Net, apply, rounded
from tiny_models import TinyFolder

from headway.core.evidence import Evidence
from headway.core.module_model import ModuleModel
from headway.core.proof import ProofContext
from headway.llm.load import load
from headway.llm.weights import dfloat11_bench as bench
from headway.llm.weights import dfloat11_proof as proof
from headway.llm.weights.coded import CodedWeight
from headway.llm.weights.dense import DenseWeight, to_bf16
from headway.llm.weights.dfloat11 import counts
from headway.llm.weights.huffman import code_lengths


@pytest.fixture
def context(tiny: TinyFolder, tmp_path, monkeypatch) -> ProofContext:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    return ProofContext(UNMEASURED, lambda _: load(tiny.path), model="tiny", quick=True, threads=1)


@pytest.fixture
def model(tiny: TinyFolder) -> Any:
    return rounded(tiny).with_runtime("native", 1)


def empty() -> Evidence:
    return Evidence.begin("prove", "dfloat11", UNMEASURED, 0, 1)


def bars(evidence: Evidence) -> dict[str, bool]:
    return {bar.name.split(":")[-1].strip(): bar.met for bar in evidence.bars}


def test_patterns_come_back_and_a_wrong_bit_is_seen(monkeypatch):
    evidence = empty()
    proof.fuzz(evidence, 0)
    assert evidence.met
    whole = CodedWeight.bits
    monkeypatch.setattr(CodedWeight, "bits", lambda self: whole(self) ^ np.uint16(self.shape == (1, 1)))
    broken = empty()
    proof.fuzz(broken, 0)
    assert "one element" in broken.bars[0].here and not broken.met


def test_the_model_is_lossless_and_a_changed_weight_is_seen(model, context):
    evidence = empty()
    proof.lossless(evidence, model, apply(model), context)
    assert evidence.met and len(evidence.bars) == 3
    value = model.weight("layers.1.mlp.up").dequantize().copy()
    value[0, 0] = value[0, 0] * 2 + 1
    other = apply(model.with_weights({"layers.1.mlp.up": DenseWeight(value, "bf16")}))
    broken = empty()
    proof.lossless(broken, model, other, context)
    found = bars(broken)
    assert not found["every tensor, model -> file -> memory -> expanded"]
    assert not found["logits and greedy tokens"]


def test_weights_left_dense_are_no_proof_that_the_kernel_ran(model, context):
    evidence = empty()
    proof.lossless(evidence, model, model, context)
    found = bars(evidence)
    assert not found["tiles expanded while the tokens were decoded"]
    assert not found["every tensor, model -> file -> memory -> expanded"]


def test_sizes_of_natural_weights_hold_and_longer_codes_are_seen(model, context, monkeypatch):
    shaped = ModuleModel(Net(), torch.randn(1, 20, 4, 4))
    monkeypatch.setattr(context, "load", lambda name: shaped)
    groups = proof.module_groups(shaped, context, 1)
    assert sum(len(members) for members in groups.values()) == 5
    value = to_bf16(np.random.default_rng(0).standard_normal((600, 400), dtype=np.float32) * np.float32(0.03))
    best = CodedWeight(value, code_lengths(counts(value)))
    flat = CodedWeight(value, code_lengths((counts(value) > 0).astype(np.uint64)))
    assert 1 <= proof.over_entropy([best]) < 1.03 < proof.over_entropy([flat])


class Answer:
    """What a child would have answered."""

    ok = True

    def __init__(self, value: Any) -> None:
        self.value = value


def test_the_triton_kernel_is_compared_and_a_difference_is_seen(model, context, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    gpu = importlib.reload(importlib.import_module("headway.kernels.gpu.dfloat11"))
    asked: list[str] = []

    def here(function: str, arguments: Any, limits: Any, *, environment: Any) -> Answer:
        asked.append(environment["TRITON_INTERPRET"])
        module, _, name = function.partition(":")
        return Answer(getattr(importlib.import_module(module), name)(**arguments))

    monkeypatch.setattr(bench, "run_function", here)
    small = apply(model, groups="module")
    weights = [small.weight(f"layers.{layer}.attention.k") for layer in (0, 1)]
    same = bench.triton_equals([weight.tensors() for weight in weights], [weight.shape for weight in weights])
    assert same == [True, True] and asked == ["1"]
    evidence = empty()
    proof.triton(evidence, small)
    assert not evidence.met  # two layers are no three groups
    whole = gpu.expand
    monkeypatch.setattr(gpu, "expand", lambda packed, per_program: whole(packed, per_program).roll(1))
    assert bench.triton_equals([weights[0].tensors()], [weights[0].shape]) == [False]


def test_every_pass_expands_every_tile(model):
    small = apply(model)
    groups = list(proof._groups({s.name: small.weight(s.name) for s in small.sites()}, small.sites()).values())
    tiles = sum(-(-w.shape[0] // 16) for group in groups for w in group)
    before = proof._cpu.dfloat11_expanded()
    seconds = bench.expansion(groups, "portable", 1)()
    assert len(seconds) == len(groups) and (seconds > 0).all()
    assert proof._cpu.dfloat11_expanded() - before == tiles
    bench.expansion(groups, "portable", 1, plain=True)()
    assert proof._cpu.dfloat11_expanded() - before == tiles  # the rival is not the kernel


def test_the_rival_reads_what_the_budget_does_not_hold(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    read: list[int] = []
    whole = bench.os.preadv
    monkeypatch.setattr(bench.os, "preadv", lambda *args: read.append(whole(*args)) or read[-1])
    wanted = bench.PIECE + 100
    values = np.random.default_rng(0).integers(0, 256, bench.PIECE // 2).astype(np.uint8)
    with bench.on_disk(iter([values, values]), wanted) as file:
        rival = bench.OffLoaded(bench.Steps(model, 2), file, wanted)
        rival()
        assert sum(read) >= wanted
        assert bytes(rival.buffer[:4]) == bytes(4)  # the second piece, beyond the arrays, is zeros
    assert not file.exists()


def test_memory_of_both_models_is_measured_in_fresh_processes(model, context, monkeypatch):
    peaks = iter((80, 100))
    monkeypatch.setattr(bench, "peak_bytes", lambda *_: next(peaks))
    evidence = empty()
    proof.memory(evidence, model, apply(model), context)
    assert evidence.met
    peaks = iter((10**9, 100))
    monkeypatch.setattr(bench, "peak_bytes", lambda *_: next(peaks))
    broken = empty()
    proof.memory(broken, model, apply(model), context)
    assert not broken.met


def test_a_model_that_is_no_language_model_is_refused(context, monkeypatch):
    monkeypatch.setattr(context, "load", lambda _: ModuleModel(Net(), torch.randn(1, 20, 4, 4)))
    with pytest.raises(proof.BadInput, match="no language model"):
        proof.prove(context)
