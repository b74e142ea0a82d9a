"""The recipe trains, resumes with the same bits, distils, and follows its schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.lab import Pictures
from headway.vision.train import Recipe, _loss, accuracy, published, scaled, schedule_of, train


def pictures(count: int = 256) -> Pictures:
    """A class is the brighter quarter."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=random)
    images = torch.randn(count, 1, 4, 4, generator=random) * 0.3
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 2 * (label // 2) : 2 * (label // 2) + 2, 2 * (label % 2) : 2 * (label % 2) + 2] += 1.0
    return Pictures(images, labels, 4)


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("recipe", [Recipe(40), Recipe(40, schedule="cosine", warmup=0.1, label_smoothing=0.1)])
def test_a_small_task_is_learnt(recipe: Recipe) -> None:
    net = network()
    before = accuracy(net, pictures())
    losses = train(net, pictures(), recipe)
    assert len(losses) == 40 and losses[-1] < losses[0] and not net.training
    assert accuracy(net, pictures()) > max(0.9, before)


def test_a_resumed_training_has_the_same_weights(tmp_path: Path) -> None:
    recipe = Recipe(12, mixup=0.8)
    whole = network()
    train(whole, pictures(), recipe, seed=3)
    resumed = network()

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt

    calls: list[int] = []
    hook = resumed.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train(resumed, pictures(), recipe, seed=3, checkpoint=tmp_path / "state")
    hook.remove()
    again = network(seed=9)
    train(again, pictures(), recipe, seed=3, checkpoint=tmp_path / "state")
    for mine, wanted in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, wanted)


def test_distillation_is_the_cards_formula_and_two_heads_share_it() -> None:
    x, target = torch.randn(8, 16), torch.eye(4).repeat(2, 1)
    student, other, teacher = torch.randn(8, 4), torch.randn(8, 4), nn.Linear(16, 4)
    recipe = Recipe(distil=0.5, temperature=2.0)
    wanted = (teacher(x) / 2).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - (other / 2).log_softmax(-1))).sum(-1).mean() * 4
    cross = -(target * student.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(
        _loss((student, other), target, x, recipe, teacher), 0.5 * cross + 0.5 * divergence, atol=1e-6
    )
    with pytest.raises(BadInput, match=r"distil=0\.5 without a teacher"):
        train(network(), pictures(), recipe)
    with pytest.raises(BadInput, match="at least one step"):
        train(network(), pictures(), Recipe(0))


def test_a_cosine_rises_and_falls_to_its_least() -> None:
    recipe = Recipe(100, lr=0.5, schedule="cosine", warmup=0.1, least_lr=0.05)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = schedule_of(optimizer, recipe)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:10] == sorted(rates[:10]) and max(rates) == rates[10] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.05, abs=1e-3)


def test_published_recipes_scale_their_rate_with_the_batch() -> None:
    small = scaled(published("shvit", "s1"), 100, 64)
    assert (small.lr, small.steps, small.batch) == (1e-3 / 32, 100, 64) and small.weight_decay == 0.025
    assert published("patnet", "l").clip == 0.01 and published("patnet", "t2").clip is None
    with pytest.raises(BadInput, match="no published recipe of 'lenet'"):
        published("lenet", "5")
