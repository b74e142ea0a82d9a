"""A training that is stopped and resumed ends where one that never stopped does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from headway.core.errors import BadFile, BadInput
from headway.training.fit import Training, fit


def _training(width: int = 5) -> Training:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return Training(net, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12), clip=1.0)


def _step(training: Training, stop_at: int | None = None) -> Callable[[int], Tensor]:
    def step(index: int) -> Tensor:
        if index == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4)
        return nn.functional.cross_entropy(training.module(x), (x.sum(1) > 0).long())

    return step


def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = _training()
    losses = fit(whole, _step(whole), 12, seed=7)

    stopped = _training()
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, _step(stopped, stop_at=5), 12, seed=7, checkpoint=tmp_path / "state")
    resumed = _training()
    assert fit(resumed, _step(resumed), 12, seed=7, checkpoint=tmp_path / "state") == losses
    for mine, wanted in zip(resumed.module.state_dict().values(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(mine, wanted)


def test_the_seed_decides(tmp_path: Path) -> None:
    one, other = _training(), _training()
    assert fit(one, _step(one), 3, seed=1) != fit(other, _step(other), 3, seed=2)


def test_the_callers_random_numbers_are_left_alone() -> None:
    training = _training()
    torch.manual_seed(5)
    wanted = torch.randn(3)
    torch.manual_seed(5)
    fit(training, _step(training), 2)
    assert torch.equal(torch.randn(3), wanted)


def test_a_checkpoint_of_another_network_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    training = _training()
    fit(training, _step(training), 2, checkpoint=path, every=1)
    other = _training(width=6)
    with pytest.raises(BadFile, match="not a checkpoint of this training"):
        fit(other, _step(other), 2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadFile, match="remove it to begin anew"):
        fit(training, _step(training), 2, checkpoint=path)


def test_a_loss_that_is_no_number_is_refused() -> None:
    training = _training()
    with pytest.raises(BadInput, match="step 0: the loss is not a number"):
        fit(training, lambda index: training.module(torch.full((4, 4), float("nan"))).sum(), 2)


def test_an_update_that_is_interrupted_half_way_is_never_what_is_kept(tmp_path: Path) -> None:
    whole = _training()
    losses = fit(whole, _step(whole), 12, seed=7)

    stopped = _training()
    real, calls = stopped.optimizer.step, []

    def half() -> None:
        real()
        calls.append(None)
        if len(calls) == 6:
            raise KeyboardInterrupt  # the weights have moved, the schedule has not

    stopped.optimizer.step = half  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, _step(stopped), 12, seed=7, checkpoint=tmp_path / "state", every=2)
    resumed = _training()
    assert fit(resumed, _step(resumed), 12, seed=7, checkpoint=tmp_path / "state") == losses
    for mine, wanted in zip(resumed.module.state_dict().values(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(mine, wanted)
