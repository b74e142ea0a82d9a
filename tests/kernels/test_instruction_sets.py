"""HEADWAY_ISA lowers the instruction set, never raises it, and says so when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headway.kernels import cpu

CODE = (
    "import numpy as np, hashlib; from headway.kernels import cpu;"
    "r = np.random.default_rng(0);"
    "w = cpu.pack_int8(r.integers(0, 256, (70, 100), dtype=np.uint8), r.random((70, 4), np.float32), None, 32, 128);"
    "y = w.matmul(r.standard_normal((9, 100)).astype(np.float32));"
    "print(cpu.isa(), hashlib.sha256(y.tobytes()).hexdigest())"
)


def run(level: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HEADWAY_ISA": level}
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)


def test_every_level_of_this_machine_can_be_forced_and_gives_the_same_bits():
    answers = [run(level).stdout.split() for level in cpu.levels()]
    assert [answer[0] for answer in answers] == list(cpu.levels())
    assert len({answer[1] for answer in answers}) == 1


def test_an_unknown_level_is_refused_with_the_known_ones():
    failed = run("sse9")
    assert failed.returncode != 0
    assert "HEADWAY_ISA=sse9" in failed.stderr
    assert "avx512, avx2 or portable" in failed.stderr


def test_levels_start_with_portable_and_features_belong_to_the_highest():
    assert cpu.levels()[0] == "portable"
    with cpu.at_level("portable"):
        assert cpu.features() == ()
        assert cpu.isa() == "portable"


def test_a_level_is_restored_after_an_error():
    before = cpu.isa()
    with pytest.raises(ZeroDivisionError), cpu.at_level("portable"):
        raise ZeroDivisionError
    assert cpu.isa() == before
