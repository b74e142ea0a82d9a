"""PyTorch, eager, with a key-value cache: float32, or bfloat16 as `torch:bf16`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from headway.core.errors import BadInput, need_extra
from headway.llm.language_model import LanguageModel
from headway.llm.scoring import F32, I64, chunks
from headway.optimize.engines.base import DECODED, Repeat


def make(model: LanguageModel, variant: str, threads: int) -> list[TorchEngine]:
    """Threads are as set for the process."""
    return [TorchEngine(model, variant)]


class TorchEngine:
    """The readable module; matrices dequantised to the data type."""

    def __init__(self, model: LanguageModel, variant: str = "") -> None:
        try:
            import torch
        except ModuleNotFoundError:
            raise need_extra("torch", "torch") from None
        types = {"": torch.float32, "f32": torch.float32, "bf16": torch.bfloat16}
        if variant not in types:
            raise BadInput(f"torch has no variant {variant!r} here", "variants are: f32, bf16")
        self.torch, self.version = torch, torch.__version__
        self.name = f"torch:{variant}" if variant else "torch"
        self.module = model.module().eval().to(types[variant])
        self.layers, self.vocabulary = len(model.architecture.layers), model.architecture.vocab
        self.size_bytes = sum(p.numel() * p.element_size() for p in self.module.parameters())
        self.bits = 8.0 * types[variant].itemsize

    def prefill(self, tokens: I64) -> Repeat:
        fed = self._batch(tokens)

        def repeat() -> None:
            with self.torch.inference_mode():
                self.module.head(self.module.hidden(fed)[:, -1:])

        return repeat

    def decode(self, tokens: I64, batch: int, depth: int) -> Repeat:
        from headway.llm.reference import Cache

        fed = self._batch(tokens).expand(batch, -1)
        cache = Cache(self.layers)
        with self.torch.inference_mode():
            self.module.hidden(fed[:, :depth], cache)

        def repeat() -> None:
            with self.torch.inference_mode():
                for at in range(DECODED):
                    self.module(fed[:, at : at + 1], cache)
            cache.rewind(depth)

        return repeat

    def predictions(self, part: I64) -> Iterator[tuple[int, F32]]:
        from headway.llm.reference import Cache

        cache = Cache(self.layers)
        for at, end in chunks(len(part) - 1, self.vocabulary):
            with self.torch.inference_mode():
                yield at, self.module(self._batch(part[at:end]), cache)[0].float().numpy()

    def _batch(self, tokens: I64) -> Any:
        return self.torch.from_numpy(np.array(tokens, np.int64))[None]

    def close(self) -> None:
        """Caches are freed with the repetitions that hold them."""
