"""The native path of the encoder in `minilm.py`: the same network, made from the modules that hold its weights."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headway.core.packed_modules import PackedModule, TensorWeight

LAYER_LINEARS = {
    "q": "attention.q",
    "k": "attention.k",
    "v": "attention.v",
    "output": "attention.output",
    "up": "up",
    "down": "down",
}
"""Part of a native layer -> its path in the readable one."""


class _Native(Protocol):
    def encode(
        self, ids: npt.NDArray[np.int32], places: npt.NDArray[np.int32], offsets: npt.NDArray[np.int32], threads: int
    ) -> npt.NDArray[np.float32]: ...


class NativeEncoder:
    """`Encoder.forward` in one call: padding is left out, activations are quantised once where weights ask for it."""

    def __init__(self, encoder: Any) -> None:
        """encoder: a `headway.retrieval.minilm.Encoder` of float32 tensors, with whatever weights its sites hold."""
        import headway.kernels.cpu._cpu as _cpu

        self._packed = [child for child in encoder.modules() if isinstance(child, PackedModule)]
        self._native: _Native = cast(Any, _cpu).make_encoder(describe(encoder))

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids: (batch, tokens) int64; mask: (batch, tokens) bool -> (batch, width) float32."""
        kept = mask.numpy().astype(bool, copy=False)
        offsets = np.zeros(len(kept) + 1, np.int32)
        np.cumsum(kept.sum(1), out=offsets[1:])
        places = kept.nonzero()[1].astype(np.int32)
        vectors = self._native.encode(ids.numpy()[kept].astype(np.int32), places, offsets, 0)
        for site in self._packed:
            site.kernel_calls += 1
        return torch.from_numpy(vectors)


def describe(encoder: Any) -> dict[str, Any]:
    """What the native encoder is made of; tables of embeddings are views, norms and biases are copied."""
    return {
        "hidden": encoder.layers[0].up.out_features,
        "heads": encoder.layers[0].attention.heads,
        "norm_eps": encoder.norm.eps,
        "gelu": "tanh" if encoder.layers[0].gelu == "tanh" else "erf",
        "tokens": _values(encoder.tokens.weight),
        "positions": _values(encoder.positions.weight),
        "type": _values(encoder.types.weight[0]),
        "norm": _norm(encoder.norm),
        "layers": [
            {
                **{part: _linear(layer.get_submodule(path)) for part, path in LAYER_LINEARS.items()},
                "attention_norm": _norm(layer.attention_norm),
                "norm": _norm(layer.norm),
            }
            for layer in encoder.layers
        ],
    }


def _linear(layer: Any) -> dict[str, Any]:
    weight = layer.packed if isinstance(layer, PackedModule) else TensorWeight(layer.weight)
    return {"weight": weight.native(), "bias": _values(layer.bias)}


def _norm(layer: nn.LayerNorm) -> dict[str, Any]:
    return {"weight": _values(layer.weight), "bias": _values(layer.bias)}


def _values(tensor: Tensor) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = tensor.detach().contiguous().numpy()
    return values
