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


class EagerEngine:
    """An eager torch module of some implementation: its data type, its bytes, its prompts."""

    peer: str

    def __init__(self, module: Any, variant: str, vocabulary: int) -> None:
        """Raises `BadInput` for an unknown variant."""
        import torch

        types = {"": torch.float32, "f32": torch.float32, "bf16": torch.bfloat16}
        if variant not in types:
            raise BadInput(f"{self.peer} has no variant {variant!r} here", "variants are: f32, bf16")
        self.torch, self.vocabulary = torch, vocabulary
        self.name = f"{self.peer}:{variant}" if variant else self.peer
        self.module = module.to(types[variant]).eval()
        self.size_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
        self.bits = 8.0 * types[variant].itemsize

    def batch(self, tokens: I64) -> Any:
        """(1, tokens) for torch."""
        return self.torch.from_numpy(np.array(tokens, np.int64))[None]

    def close(self) -> None:
        """Caches are freed with the repetitions that hold them."""


class TorchEngine(EagerEngine):
    """The readable module; matrices dequantised to the data type."""

    peer = "torch"

    def __init__(self, model: LanguageModel, variant: str = "") -> None:
        try:
            import torch
        except ModuleNotFoundError:
            raise need_extra("torch", "torch") from None
        super().__init__(model.module(), variant, model.architecture.vocab)
        self.version, self.layers = torch.__version__, len(model.architecture.layers)

    def prefill(self, tokens: I64) -> Repeat:
        fed = self.batch(tokens)

        def repeat() -> None:
            with self.torch.inference_mode():
                self.module.head(self.module.hidden(fed)[:, -1:])

        return repeat

    def decode(self, tokens: I64, batch: int, depth: int) -> Repeat:
        from headway.llm.reference import Cache

        fed = self.batch(tokens).expand(batch, -1)
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
                yield at, self.module(self.batch(part[at:end]), cache)[0].float().numpy()
