"""How a module's answers are judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from headway.core.errors import BadInput
from headway.core.module_workload import (
    ModuleWorkload,
    agreement_for,
    closeness,
    cosine,
    digest,
    first_tensor,
    psnr_ratio,
    tensors_in,
    top1_agreement,
    workload_from,
)


@dataclass
class Output:
    """As Hugging Face models return."""

    ids: torch.Tensor
    logits: torch.Tensor
    rest: tuple[torch.Tensor, ...]


def test_inputs_are_told_apart_by_content_type_and_shape() -> None:
    ones = torch.ones(4)
    different = [
        [ones],
        [torch.zeros(4)],
        [torch.ones(2, 2)],
        [ones.bfloat16()],
        [ones, ones],
        [[ones], ones],
        [{"a": ones}],
        [{"b": ones}],
        [ones.numpy()],
        [1],
        [1.0],
        ["1"],
        [None],
        [],
    ]
    assert len({digest(inputs) for inputs in different}) == len(different)
    assert digest([torch.ones(4, requires_grad=True)]) == digest((torch.ones(8)[::2],)) == digest([ones])


def test_tensors_are_found_in_whatever_a_module_returns() -> None:
    a, b, c = torch.ones(2, 3), torch.zeros(2), torch.full((2, 1), 2.0)
    output = {"x": Output(torch.tensor([1]), a, (b,)), "y": [c, None, "text", 3]}
    assert [tensor is known for tensor, known in zip(tensors_in(output), (a, b, c), strict=True)] == [True] * 3
    with pytest.raises(BadInput, match="no floating-point tensor"):
        first_tensor(torch.tensor([1]))
    with pytest.raises(BadInput, match="no floating-point tensor"):
        closeness("a", "b")


def test_top1_counts_rows_that_choose_the_same_class_and_no_broken_one() -> None:
    a = torch.tensor([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]])
    b = torch.tensor([[0.0, 9.0], [1.0, 2.0], [float("nan"), 1.0]])
    assert top1_agreement(a, b).tolist() == [1.0, 0.0, 0.0]


def test_cosine_ignores_length_and_closeness_does_not() -> None:
    a = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(cosine(a, 3 * a), 1.0, atol=1e-12)
    np.testing.assert_allclose(closeness(a, 0.9 * a), 0.9, atol=1e-6)
    assert closeness(a, -a).tolist() == [0.0] * 5
    assert closeness(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 1e-9]])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("judge", [cosine, closeness, top1_agreement])
def test_identical_is_one_and_not_finite_is_zero(judge: object) -> None:
    a = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    broken = torch.full_like(a, float("nan"))
    np.testing.assert_allclose(judge(a, a), 1.0, atol=1e-12)  # type: ignore[operator]
    assert judge(a, broken).tolist() == [0.0] * 3  # type: ignore[operator]


def test_a_users_inputs_are_split_without_overlap_and_all_used() -> None:
    inputs = [(torch.tensor([float(i)]),) for i in range(11)]
    workload = workload_from(inputs, "classification")
    splits = (workload.calibration, workload.search, workload.heldout)
    assert [len(split) for split in splits] == [3, 2, 6]
    assert sorted(float(piece[0]) for split in splits for piece in split) == [float(i) for i in range(11)]
    assert workload.metric == agreement_for("classification")[1]
    assert all(len(split) == 1 for split in (lambda w: (w.calibration, w.search, w.heldout))(workload_from(inputs[:3])))
    with pytest.raises(BadInput, match="2 inputs cannot be split"):
        workload_from(inputs[:2])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_original_that_is_not_finite_agrees_with_nothing(broken: float) -> None:
    original = torch.tensor([[1.0, broken], [1.0, 2.0]])
    assert closeness(original, original).tolist() == [0.0, 1.0]
    assert cosine(original, original).tolist() == pytest.approx([0.0, 1.0])


def test_pictures_are_judged_by_their_psnr_over_the_original_s() -> None:
    truth = torch.rand(3, 1, 8, 8)
    near, far = truth + 0.01, truth + 0.1  # 40 dB and 20 dB
    assert np.allclose(psnr_ratio(near, far, truth), 0.5)
    assert np.allclose(psnr_ratio(far, near, truth), 2.0)
    assert psnr_ratio(near, near, truth).tolist() == [1.0] * 3
    assert psnr_ratio(truth, truth, truth).tolist() == [1.0] * 3
    assert psnr_ratio(near, torch.full_like(truth, torch.nan), truth).tolist() == [0.0] * 3
    assert psnr_ratio(near, truth + 30.0, truth).tolist() == [0.0] * 3
    workload = ModuleWorkload([], [(near,)], [(far,)], psnr_ratio, "PSNR ratio", truth={"heldout": [truth]})
    assert np.allclose(workload.scores("heldout", 0, near, far), 0.5)
