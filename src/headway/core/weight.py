"""The `Weight` protocol: one linear operator's parameters in some stored form, with its exact value and its matmul."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


@runtime_checkable
class Weight(Protocol):
    """Parameters of `y = x @ W.T`, W of shape (out_features, in_features), in one stored form.

    Immutable. Torch modules and the native runtime take the same object: `native()` is what the runtime multiplies
    with, `dequantize()` is the float value that every claim of exactness refers to.
    """

    form: str
    """Name of the stored form, e.g. `dense`, `int8`, `int4`, `bitplanes`; key for `load_weight`."""
    shape: tuple[int, int]
    """(out_features, in_features)."""

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: what one matmul reads and what an artifact stores."""
        ...

    @property
    def bits_per_weight(self) -> float: ...

    def dequantize(self) -> F32:
        """The exact float32 value, shape `shape`."""
        ...

    def matmul(self, x: F32) -> F32:
        """x: (rows, in_features) -> (rows, out_features), by the form's own kernel."""
        ...

    def native(self) -> Any:
        """The `headway.kernels.cpu` weight object the whole-model step multiplies with."""
        ...

    def tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        """Arrays that store this weight in safetensors; with `meta()` they rebuild it bit for bit."""
        ...

    def meta(self) -> Mapping[str, str | int | float]: ...
