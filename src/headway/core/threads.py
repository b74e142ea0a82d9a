"""How many threads a comparison runs on: torch's and the native pool's, set together and set back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headway.kernels import cpu


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Everything in the block, torch's operators and native kernels alike, runs on `count` threads."""
    import torch

    before = torch.get_num_threads(), cpu.threads()
    torch.set_num_threads(count)
    cpu.set_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cpu.set_threads(before[1])
