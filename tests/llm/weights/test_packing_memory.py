"""Packing a matrix that lies in a file takes its packed bytes and little more: the file's pages go as it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headway.llm.weights.base import StoredWeight
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.grouped import Int4Weight, Int8Weight

PACK = """
import json, mmap, sys
import numpy as np
from headway.core.pages import release
from headway.core.resident import ResidentPeak
from headway.kernels import cpu
from headway.llm.weights.base import load_weight

cpu.set_threads(1)
described = json.loads(sys.argv[1])
arrays = {}
for name, (path, dtype, shape) in described["arrays"].items():
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays[name] = np.frombuffer(mapped, dtype).reshape(shape)
weight = load_weight(described["form"], arrays, described["meta"])
for array in arrays.values():
    release(array)
with ResidentPeak() as peak:
    packed = weight.native()
print(json.dumps([peak.over_bytes, packed.nbytes]))
"""
ROWS, COLUMNS = 24_000, 1024
HUGE_PAGES = 2 * (2 << 20)
"""What rounding two buffers up to huge pages can take, where the kernel has some to give."""


def weights() -> dict[str, StoredWeight]:
    random = np.random.default_rng(0)
    scale = np.full((ROWS, COLUMNS // 64), 0.01, np.float16)
    codes = random.integers(0, 256, (ROWS, COLUMNS), dtype=np.uint8)
    return {
        "int8": Int8Weight(codes.view(np.int8), scale, group_size=64),
        "int4": Int4Weight(codes & 15, scale, -scale, group_size=64),
        "dense": DenseWeight((codes / np.float32(256)).astype(np.float32), "f16"),
        "bitplanes": BitPlanes.from_codes(codes & 15, scale, -scale, bits=4, group_size=64),
    }


@pytest.mark.parametrize(("form", "spare"), [("int8", 0.35), ("int4", 0.8), ("dense", 0.2), ("bitplanes", 1.1)])
def test_packing_peaks_near_the_packed_bytes(form: str, spare: float, tmp_path: Path) -> None:
    weight = weights()[form]
    arrays = {}
    for name, array in weight.tensors().items():
        np.ascontiguousarray(array).tofile(tmp_path / name)
        arrays[name] = (str(tmp_path / name), array.dtype.str, array.shape)
    described = {"form": form, "meta": dict(weight.meta()), "arrays": arrays}
    done = subprocess.run(
        [sys.executable, "-c", PACK, json.dumps(described)], capture_output=True, text=True, check=True
    )
    peak, packed = json.loads(done.stdout)
    assert packed <= weight.nbytes * 1.02
    assert peak < packed * (1 + spare) + HUGE_PAGES


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_narrow_dense_weight_is_held_as_narrow_as_it_is_stored(dtype: str) -> None:
    random = np.random.default_rng(1)
    weight = DenseWeight(random.standard_normal((48, 64)).astype(np.float32), dtype)  # type: ignore[arg-type]
    packed = weight.native()
    assert packed.nbytes == weight.nbytes
    assert np.array_equal(packed.dequantize(), weight.dequantize())
    wide = DenseWeight(weight.dequantize(), "f32").native()
    x = random.standard_normal((5, 64)).astype(np.float32)
    assert np.array_equal(packed.matmul(x), wide.matmul(x))
