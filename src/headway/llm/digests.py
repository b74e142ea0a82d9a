"""The digest of a model's content, each weight hashed once for as long as it lives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
    for name in sorted(weights):
        digest.update(canonical_json(name) + weight_digest(weights[name]))
    for name in sorted(vectors):
        _add(digest, name, vectors[name])
    return digest.hexdigest()


def _add(digest: Any, name: str, array: npt.NDArray[Any]) -> None:
    digest.update(canonical_json([name, array.dtype.str, list(array.shape)]))
    digest.update(np.ascontiguousarray(array).data)
