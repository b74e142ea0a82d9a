"""The exactness part of the proof of `bipolar-int`: integers against int64 products, on every kernel there is."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from headway.core.evidence import Evidence
from headway.kernels.cpu import _cpu
from headway.llm.weights.bipolar import I64, BipolarWeight, quantised_activations
from headway.llm.weights.grouped import group_count
from headway.llm.weights.quantizers import rtn

COLUMNS = (1, 31, 64, 255, 576, 4097)
COUNT, RECOVER = 1 << 30, 0
TRITON_COLUMNS = (1, 31, 64, 255)
"""Narrow enough for the interpreter, which runs each operation of a program in Python."""


def exactness(evidence: Evidence, seed: int) -> None:
    """Bars 1."""
    wrong = checked = 0
    for w, x, expected in products(seed, COLUMNS):
        for level, limit in itertools.product(_cpu.bipolar_levels(), (COUNT, RECOVER)):
            wrong += int((_cpu.bipolar_integers(w.packed(limit, level), x) != expected).sum())
            checked += expected.size
    levels = ", ".join(_cpu.bipolar_levels())
    evidence.bar(
        f"exact: integers unlike int64's, 64 pairs of widths, counted and recovered ({levels})",
        "exact", "0", f"{wrong} of {checked:,}", wrong == 0,
    )  # fmt: skip
    if importlib.util.find_spec("triton") is None:
        evidence.notes.append("Triton is not installed: its kernel was not run")
    else:
        wrong, checked, where = triton_apart(seed)
        evidence.bar(
            f"exact: integers of the Triton kernel unlike int64's ({where})", "exact", "0", f"{wrong} of {checked:,}",
            wrong == 0 and checked > 0,
        )  # fmt: skip
    worst = converted_ulps(seed)
    evidence.bar(
        "exact: signed integers converted, values' distance", "lossless", "<= 1 ulp", f"{worst:.2f} ulp", worst <= 1
    )


def products(seed: int, widths: tuple[int, ...]) -> Iterator[tuple[BipolarWeight, np.ndarray, I64]]:
    """For every pair of widths and number of columns a weight, activations, and the int64 product of their levels."""
    rng = np.random.default_rng(seed)
    for n, m, columns in itertools.product(range(1, 9), range(1, 9), widths):
        rows, batch = int(rng.integers(1, 50)), int(rng.integers(1, 12))
        group, act_group = int(rng.choice([0, 32, 64, 128])), int(rng.choice([0, 32, 64]))
        codes = rng.integers(0, 1 << n, (rows, columns)).astype(np.uint8)
        scale = np.ones((rows, group_count(columns, group or columns)), np.float16)
        how = {"group_size": group, "act_bits": m, "act_group": act_group, "rotate": int(rng.choice([0, 64]))}
        w = BipolarWeight.from_codes(codes, scale, None, bits=n, **how)
        x = rng.standard_normal((batch, columns), dtype=np.float32)
        levels, _ = quantised_activations(x, m, act_group, w.rotate, w.clip)
        yield w, x, levels.astype(np.int64) @ w.levels().astype(np.int64).T


def triton_apart(seed: int) -> tuple[int, int, str]:
    """(wrong, checked, device) of the Triton kernel: on a card, else interpreted in a process of its own."""
    import torch

    if torch.cuda.is_available():
        return (*triton_mismatches(seed, "cuda"), torch.cuda.get_device_name())
    code = f"from {__name__} import triton_mismatches as f; import json; print(json.dumps(f({seed}, 'cpu')))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    wrong, checked = json.loads(done.stdout.splitlines()[-1])
    return wrong, checked, "interpreted"


def triton_mismatches(seed: int, device: str) -> tuple[int, int]:
    """(wrong, checked) for every pair of widths; Triton must have been told to interpret where there is no card."""
    import torch

    from headway.kernels.gpu import bipolar as kernel

    wrong = checked = 0
    cases = [case for at, case in enumerate(products(seed, TRITON_COLUMNS)) if at % 4 == at // 4 % 4]
    for w, x, expected in cases:
        sizes = (w.shape[1], w.group_size, w.act_bits, w.act_group, w.rotate, bool(w.clip))
        packed = kernel.pack(w.planes, w.scale, w.offset, *sizes, device)
        levels, _ = quantised_activations(x, w.act_bits, w.act_group, w.rotate, w.clip)
        given = torch.from_numpy(levels.astype(np.int32)).to(device)
        y = kernel.integers(given, packed, "recover", block_rows=64, block_batch=16).cpu().numpy()
        wrong += int((y != expected).sum())
        checked += expected.size
    return wrong, checked


def converted_ulps(seed: int) -> float:
    """Largest distance of converted signed integers from scale v + z, in last places of the larger of value and z."""
    rng = np.random.default_rng(seed)
    worst = 0.0
    for bits, group in itertools.product(range(1, 9), (32, 128)):
        w = rng.standard_normal((24, 256), dtype=np.float32)
        signed = rtn(w, bits, group, grid="mse")
        made = BipolarWeight.from_affine(signed.codes, signed.scale, signed.minimum, bits=bits, group_size=group)
        exact = signed.dequantize()
        size = np.maximum(np.abs(exact), np.repeat(np.abs(signed.minimum.astype(np.float32)), group, axis=1))
        worst = max(worst, float((np.abs(made.dequantize() - exact) / np.spacing(size)).max()))
    return worst
