"""Same on every ISA: random shapes, tails and awkward numbers give the same bits at every level of this machine.

Where the float path is held to float64, a unit is one ULP (2^-23) of the root of the sum of squared products: what
the partial sums of a dot product are made of.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import native_models as models
import numpy as np
import pytest
from random_products import INTEGER, Case, draw

from headway.kernels import cpu
from headway.kernels.cpu import _cpu
from headway.llm.native import NativeRuntime
from headway.llm.runtime import KV_TYPES

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src" / "headway" / "kernels" / "cpu"
ULPS = 2.0


@contextmanager
def as_level(level: str) -> Iterator[None]:
    """`vbmi` names look-up kernels, not a level of its own."""
    with cpu.at_level(level if level in cpu.levels() else cpu.levels()[-1]):
        yield


def same_bits(a: Any, b: Any) -> bool:
    """Equal bit for bit; a NaN is a NaN, whatever its payload."""
    nan = np.isnan(a)
    return bool(np.array_equal(nan, np.isnan(b)) and np.array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32)))


def answers(case: Case, level: str) -> dict[str, Any]:
    with as_level(level):
        weight = case.pack(level)
        return {
            "product": weight.matmul(case.x, threads=1),
            "exact product": weight.matmul(case.x, exact=True, threads=1),
            "values": weight.dequantize(),
        }


def ulps(case: Case, y: Any, values: Any) -> float:
    """The worst error of an exact product in ULP sqrt(k); infinite where something finite became another thing."""
    with np.errstate(all="ignore"):
        x, w = case.x.astype(np.float64), values.astype(np.float64)
        expected, size = x @ w.T, np.sqrt((x * x) @ (w * w).T)
        most = np.abs(x) @ np.abs(w).T
        sound = np.isfinite(expected) & (most < 1e38)
        if not np.isfinite(y[sound]).all() or np.isfinite(y[~np.isfinite(expected)]).any():
            return math.inf
        allowed = 2.0**-23 * size + 2.0**-140  # sums of denormals are exact to their own unit
        return float(np.max(np.abs(y - expected)[sound] / allowed[sound], initial=0.0)) / math.sqrt(x.shape[1])


def every_level(count: int) -> dict[str, Any]:
    """Draw `count` products and compare every level with portable; gives the suite's figures."""
    worst = 0.0
    for seed in range(count):
        case = draw(seed)
        first = answers(case, "portable")
        for level in case.levels[1:]:
            found = answers(case, level)
            for what, expected in first.items():
                assert same_bits(found[what], expected), f"{case.kind} #{seed}: {what} differs at {level}"
        with as_level(case.levels[-1]):
            worst = max(worst, ulps(case, first["exact product"], first["values"]))
        assert worst <= ULPS, f"{case.kind} #{seed}"
        if case.kind in INTEGER[:2]:  # with blocks of activations that are not finite, a row says so throughout
            lost = ~np.isfinite(case.x).all(axis=1)
            assert np.isnan(first["product"][lost]).all()
    return {"products": count, "levels": "/".join(cpu.levels()), "worst_ulp_per_sqrt_k": worst}


def every_step(count: int) -> int:
    """Whole-model steps of random shapes, prefill and decode: the same logits at every level."""
    for seed in range(count):
        random = np.random.default_rng([21, seed])
        name = list(models.FAMILIES)[seed % len(models.FAMILIES)]
        sizes = {"d_model": int(random.integers(1, 66)), "ffn": int(random.integers(1, 66))} if name != "odd" else {}
        arch = models.architecture(name, vocab=int(random.integers(2, 200)), **sizes)
        weights, vectors = models.random_parts(arch, ("dense", "int8", "int4")[seed % 3], seed)
        tokens = random.integers(0, arch.vocab, int(random.integers(1, 140)))
        logits = []
        for level in cpu.levels():
            with cpu.at_level(level):
                session = NativeRuntime(arch, weights, vectors, kv=KV_TYPES[seed // 3 % len(KV_TYPES)]).begin()
                logits.append((session.feed(tokens, every=True), session.feed(tokens[:1])))
        for prefill, decode in logits[1:]:
            assert same_bits(prefill, logits[0][0]), f"{name} #{seed}"
            assert same_bits(decode, logits[0][1]), f"{name} #{seed}"
    return count


def test_two_hundred_products_and_forty_steps_have_the_same_bits_at_every_level(figures: Callable[..., None]) -> None:
    figures(**every_level(200), steps=every_step(40))


@pytest.mark.nightly
def test_ten_thousand_products_and_five_hundred_steps_have_the_same_bits(figures: Callable[..., None]) -> None:
    figures(**every_level(10_000), steps=every_step(500))


# Machines that are not here

PRODUCT = (
    "import hashlib, numpy as np; from headway.kernels import cpu; r = np.random.default_rng(0);"
    "w = cpu.pack_int4(r.integers(0, 16, (70, 100), dtype=np.uint8), r.random((70, 4), np.float32), None, 32, 8);"
    "y = w.matmul(r.standard_normal((9, 100)).astype(np.float32), threads=1);"
    "print(cpu.isa(), ','.join(cpu.levels()), hashlib.sha256(y.tobytes()).hexdigest())"
)
ALONE = (
    "import importlib.util, sys; s = importlib.util.spec_from_file_location('_cpu', sys.argv[1]);"
    "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); print(m.isa(), ','.join(m.levels()), 'alone')"
)
WITHOUT_NUMPY = ("Opteron_G1", "Nehalem")
"""The extension without numpy, which asks for a newer processor than the extension does."""


def need(program: str, package: str) -> str:
    """The program; its absence fails the suite rather than passing over it."""
    found = shutil.which(program)
    assert found, f"{program} is not installed: apt-get install {package}"
    return found


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "levels"),
    [
        ("Opteron_G1", "portable"),
        ("Nehalem", "portable"),
        ("SandyBridge", "portable"),
        ("Haswell,-fma", "portable"),
        ("Haswell,-bmi2", "portable"),
        ("Haswell", "portable,avx2"),
    ],
)
def test_the_extension_starts_where_a_level_is_masked(
    model: str, levels: str, figures: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulated processor without it: no illegal instruction, and the bits of this machine."""
    assert platform.machine() == "x86_64", "the emulated processors are x86"
    emulator = need("qemu-x86_64-static", "qemu-user-static")
    monkeypatch.delenv("HEADWAY_ISA", raising=False)
    code = [ALONE, _cpu.__file__] if model in WITHOUT_NUMPY else [PRODUCT]
    masked = subprocess.run([emulator, "-cpu", model, sys.executable, "-c", *code], capture_output=True, text=True)
    assert masked.returncode == 0, masked.stderr[-2000:]
    isa, found, digest = masked.stdout.split()
    assert found == levels
    assert isa == levels.split(",")[-1]
    here = subprocess.run([sys.executable, "-c", PRODUCT], capture_output=True, text=True, check=True)
    assert digest in ("alone", here.stdout.split()[-1])
    figures(processor=model, levels=levels)


def digests(compiler: list[str], runner: list[str], folder: Path) -> list[str]:
    """What `portable_main.cpp` prints, built by that compiler and run by that runner."""
    sources = [
        HERE / "portable_main.cpp",
        SOURCE / "portable" / "kernels.cpp",
        SOURCE / "portable" / "lut_portable.cpp",
    ]
    program = folder / "portable"
    flags = ["-std=c++20", "-O2", "-static", "-ffp-contract=off", "-fno-math-errno", "-w", f"-I{SOURCE}"]
    subprocess.run([*compiler, *flags, *map(str, sources), "-o", str(program)], check=True)
    run = subprocess.run([*runner, str(program)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.splitlines()


@pytest.mark.nightly
def test_the_portable_kernels_have_the_same_bits_on_neon(tmp_path: Path, figures: Callable[..., None]) -> None:
    """Cross-compiled for aarch64, where vectors are NEON's and fma is an instruction, and run under emulation."""
    compiler = need("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    emulator = need("qemu-aarch64-static", "qemu-user-static")
    own = digests([os.environ.get("CXX", "c++")], [], tmp_path)
    neon = digests([compiler], [emulator], tmp_path)
    assert neon == own
    figures(kernels=len(own), cases=sum(int(line.split()[1]) for line in own))
