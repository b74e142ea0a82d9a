"""Sanitised: the native suite under AddressSanitizer and UBSan, the thread pool under ThreadSanitizer: no report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = ROOT / "src" / "headway" / "kernels" / "cpu"
NATIVE = (
    "tests/kernels",
    "tests/llm/weights",
    "tests/serving/test_engine.py",
    "tests/retrieval/test_native_encoder.py",
    "tests/vision/runtime/test_native_net.py",
)
"""Tests that run native code the most."""


def storm(folder: Path, rounds: int) -> dict[str, int]:
    """What `pool_storm.cpp` counts under ThreadSanitizer; a race ends it with an error."""
    program = folder / "pool_storm"
    compiler = os.environ.get("CXX", "c++")
    flags = ["-std=c++20", "-O1", "-g1", "-fsanitize=thread", "-DHEADWAY_X86=1", f"-I{SOURCE}"]
    sources = [str(HERE / "pool_storm.cpp"), str(SOURCE / "pool.cpp")]
    subprocess.run([compiler, *flags, *sources, "-o", str(program), "-lpthread"], check=True)
    # Without randomised addresses, which older runtimes of the sanitizer do not find their way in.
    run = subprocess.run(["setarch", "-R", str(program), str(rounds)], capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr, run.stderr[-3000:]
    counts: dict[str, int] = json.loads(run.stdout)
    return counts


def test_twenty_thousand_rounds_of_the_pool(tmp_path: Path, figures: Callable[..., None]) -> None:
    counts = storm(tmp_path, 20_000)
    assert counts["wrong"] == 0 and counts["shared"] > 0
    figures(**counts)


@pytest.mark.nightly
def test_ten_million_rounds_of_the_pool(tmp_path: Path, figures: Callable[..., None]) -> None:
    counts = storm(tmp_path, 10_000_000)
    assert counts["wrong"] == 0 and counts["shared"] > 0
    figures(**counts)


@pytest.mark.nightly
def test_the_native_suite_under_address_and_undefined_behaviour_sanitizers(
    tmp_path: Path, figures: Callable[..., None]
) -> None:
    """The extension is built anew for it, which takes some minutes."""
    define = "cmake.define.HEADWAY_SANITIZE=address,undefined"
    install = ["-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target", str(tmp_path / "lib")]
    subprocess.run([sys.executable, *install, "-C", define, str(ROOT)], check=True)
    compiler = os.environ.get("CXX", "c++")
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # the interpreter leaves its own behind
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(tmp_path / "lib"),
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NATIVE],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, (run.stdout + run.stderr)[-5000:]
    figures(result=run.stdout.splitlines()[-1])
