"""A file's tensors reach the arguments that they are named for; what does not say which is which is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.optimize.workloads import make_workload


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, tokens: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
        return self.layer(tokens) * scale * (1 if mask is None else mask)


TOKENS, MASK = np.arange(12, dtype=np.float32).reshape(6, 2), np.ones((6, 1), np.float32)


def first_inputs(path: Path, **arrays: Any) -> tuple[Any, ...]:
    """The arguments of the inputs, in order, of all splits together; only the first of them."""
    save_file({name.lstrip("_"): array for name, array in arrays.items()}, path / "data.safetensors")
    model = ModuleModel(Two(), torch.ones(1, 2))
    splits = make_workload(model, data=path / "data.safetensors").data
    pieces = [*splits.calibration, *splits.search, *splits.heldout]
    assert len(pieces) == 6
    return min(pieces, key=lambda piece: float(piece[0].reshape(-1)[0]))


def test_tensors_are_given_to_the_parameters_of_their_names(tmp_path: Path) -> None:
    tokens, scale, mask = first_inputs(tmp_path, mask=MASK, tokens=TOKENS)
    assert (tokens.tolist(), scale, mask.tolist()) == ([[0.0, 1.0]], 2.0, [[1.0]])
    (alone,) = first_inputs(tmp_path, tokens=TOKENS)
    (other,) = first_inputs(tmp_path, anything=TOKENS)
    assert torch.equal(alone, other) and torch.equal(alone, tokens)


def test_numbered_tensors_are_given_in_their_order(tmp_path: Path) -> None:
    tokens, scale, mask = first_inputs(tmp_path, _2=MASK, _1=MASK * 3, _0=TOKENS)
    assert (tokens.tolist(), scale.tolist(), mask.tolist()) == ([[0.0, 1.0]], [[3.0]], [[1.0]])


@pytest.mark.parametrize("names", [("a", "b"), ("tokens", "b"), ("0", "2"), ("tokens", "1")])
def test_names_that_do_not_say_which_is_which_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"which argument is which.*name the tensors as forward does \(tokens, scale"):
        first_inputs(tmp_path, **{f"_{names[0]}": TOKENS, f"_{names[1]}": MASK})


def test_a_mask_without_what_it_masks_and_unequal_numbers_of_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="names do not fit"):
        first_inputs(tmp_path, mask=MASK)
    with pytest.raises(BadInput, match=r"it holds 4 of mask, 6 of tokens|it holds 6 of tokens, 4 of mask"):
        first_inputs(tmp_path, tokens=TOKENS, mask=MASK[:4])
