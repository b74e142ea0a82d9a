"""The digest of a model's content, each weight hashed once for as long as it lives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from headway.core.jsontext import canonical_json
from headway.core.weight import F32, Weight
from headway.llm.families.base import Architecture

_KNOWN: WeakKeyDictionary[Weight, bytes] = WeakKeyDictionary()


def weight_digest(weight: Weight) -> bytes:
    """SHA-256 of a weight's form, settings and arrays."""
    found = _KNOWN.get(weight)
    if found is None:
        digest = hashlib.sha256(canonical_json({"form": weight.form, "meta": dict(weight.meta())}))
        for name, array in sorted(weight.tensors().items()):
            _add(digest, name, array)
        found = _KNOWN[weight] = digest.digest()
    return found


def model_digest(arch: Architecture, weights: Mapping[str, Weight], vectors: Mapping[str, F32]) -> str:
    """Hex digest of the architecture and every value."""
    digest = hashlib.sha256(canonical_json(arch.to_json()))
    names = sorted(weights)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        for name, found in zip(names, pool.map(weight_digest, (weights[n] for n in names)), strict=True):
            digest.update(canonical_json(name) + found)
    for name in sorted(vectors):
        _add(digest, name, vectors[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, array: npt.NDArray[Any]) -> None:
    digest.update(canonical_json([name, array.dtype.str, list(array.shape)]))
    digest.update(np.ascontiguousarray(array).data)
