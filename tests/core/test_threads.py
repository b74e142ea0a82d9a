"""Threads are set for a block and set back, also when it fails."""

import pytest
import torch

from headway.core.threads import on_threads
from headway.kernels import cpu


def test_both_kinds_of_threads_are_set_and_set_back() -> None:
    before = torch.get_num_threads(), cpu.threads()
    with pytest.raises(RuntimeError, match="stop"), on_threads(1):
        assert (torch.get_num_threads(), cpu.threads()) == (1, 1)
        raise RuntimeError("stop")
    assert (torch.get_num_threads(), cpu.threads()) == before
