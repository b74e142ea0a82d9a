"""Small networks of the kinds whose channels are cut, inputs, and a context of a machine never measured."""

from __future__ import annotations

from typing import Any

import torch
from known_machine import UNMEASURED
from torch import Tensor, nn

from headway.core.module_model import ModuleModel
from headway.core.module_workload import workload_from
from headway.core.system import Context
from headway.vision.fold import randomise_norms

SIDE = 16


class Inverted(nn.Module):
    """An inverted residual with a squeeze-and-excite gate."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.filter, self.norm2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide)
        self.squeeze, self.excite = nn.Conv2d(wide, wide // 4, 1), nn.Conv2d(wide // 4, wide, 1)
        self.project, self.norm3 = nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm2(self.filter(torch.relu(self.norm1(self.expand(x))))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.norm3(self.project(y * gate))


class Partial(nn.Module):
    """A FasterNet block: a convolution of some channels, then an MLP, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.some = channels // 4
        self.space = nn.Conv2d(self.some, self.some, 3, padding=1)
        self.mlp = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.ReLU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        head, tail = x.split([self.some, x.shape[1] - self.some], 1)
        return x + self.mlp(torch.cat([self.space(head), tail], 1))


class Net(nn.Module):
    """A stem, two inverted residuals, a partial block, and a head of linear layers."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Inverted(16, 64), Inverted(16, 96), Partial(16))
        self.hidden, self.out = nn.Linear(16, 48), nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3))
        return self.out(torch.relu(self.hidden(y)))


def built() -> Any:
    """For an artifact's `python:slim_nets:built`."""
    return Net(), torch.zeros(1, 3, SIDE, SIDE)


def net(seed: int = 0) -> nn.Module:
    """Whose answers differ from image to image: of unit mean square, times two."""
    torch.manual_seed(seed)
    made: Any = randomise_norms(Net(), seed).eval()
    with torch.no_grad():
        answers = made(images(64))
        made.out.bias -= answers.mean(0)
        for values in (made.out.weight, made.out.bias):
            values *= 2.0 / answers.std()
        scale = 2.0 / made(images(64)).std()
        for values in (made.out.weight, made.out.bias):
            values *= scale
    return made


def images(count: int, seed: int = 1) -> Tensor:
    """Smooth ones, so that channels go together."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")


def model(module: nn.Module | None = None, **more: Any) -> ModuleModel:
    pieces = [(images(8, seed),) for seed in range(20)]
    given = {"task": "classification", "workload": lambda m: workload_from(pieces, m.task), **more}
    return ModuleModel(module or net(), images(1), name="small", **given)


def context(count: int = 64, **more: Any) -> Context:
    return Context(UNMEASURED, [(part,) for part in images(count).split(8)], threads=1, **more)
