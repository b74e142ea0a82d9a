"""Progressive shrinking: a nested network trained from its largest form down (Once-for-All, section 3).

The largest network is trained; then smaller kernels, depths and widths join, each with its teacher's soft labels and
channels sorted by importance first. Sub-networks are cut out with their weights, batch norm estimated again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from headway.training.fit import Training, fit
from headway.vision.search.elastic import ElasticNet
from headway.vision.search.family import NetSettings, Subject
from headway.vision.search.recalibrate import recalibrate
from headway.vision.search.space import Genotype
from headway.vision.search.stagewise import Stagewise
from headway.vision.search.train import accuracy, channels_last, seeded


class SupernetSettings(NetSettings):
    """How a nested network is trained. Defaults are D400's."""

    full_steps: int = Field(400, ge=1, description="steps of the largest network alone; paper: 180 epochs")
    phase_steps: int = Field(250, ge=1, description="steps of each later phase; paper: 25 or 120 epochs")
    shrink: bool = Field(True, description="progressive phases; false: all sizes from the start, in as many steps")
    batch: int = Field(48, ge=2, description="images in a batch; paper: 64 a GPU")
    lr: float = Field(0.15, gt=0, description="peak of the first phase's learning rate; paper: 2.6 at batch 2048")
    phase_lr: float = Field(0.05, gt=0, description="peak of the later phases'; paper: 2.5e-3 to 3e-2 a GPU")
    weight_decay: float = Field(1e-4, ge=0, description="of weights, not of norms and biases; paper: 3e-5")
    kd_ratio: float = Field(1.0, ge=0, description="weight of the teacher's soft labels; paper: 1")
    bn_images: int = Field(2000, ge=200, description="images by which batch norm is estimated again; paper: 2,000")


LEARNED = {"full_steps", "phase_steps", "shrink", "batch", "lr", "phase_lr", "weight_decay", "kd_ratio"}
"""Settings that shape the supernet."""


@dataclass(frozen=True)
class Phase:
    """What sub-networks are drawn from, how many a step; `sort`: expansions trained so far, to sort channels by."""

    name: str
    depths: int
    """How many of the largest options of every depth."""
    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    draws: int
    sort: tuple[int, ...] = ()


def phases(macro: Stagewise, shrink: bool = True) -> list[Phase]:
    """The table of the paper: full, kernel, depths one by one (2 draws), expansions one by one (4 draws)."""
    kernels, expands = macro.kernels, tuple(sorted(macro.expands, reverse=True))
    depths = max(len(stage.depths) for stage in macro.stages)
    if not shrink:
        return [Phase("joint", depths, kernels, expands, 1)]
    made = [Phase("full", 1, (max(kernels),), expands[:1], 1), Phase("kernel", 1, kernels, expands[:1], 1)]
    made += [Phase(f"depth-{n - 1}", n, kernels, expands[:1], 2) for n in range(2, depths + 1)]
    for n in range(2, len(expands) + 1):
        made.append(Phase(f"expand-{n - 1}", depths, kernels, expands[:n], 4, expands[: n - 1]))
    return made


def draw(macro: Stagewise, phase: Phase, rng: random.Random) -> Genotype:
    """A sub-network of a phase, every choice uniform and independent; fine widths are free in the last phase."""
    given: dict[str, int] = {}
    for choice in macro.space.choices:
        kind = choice.name[0]
        if kind == "d":
            given[choice.name] = rng.choice(sorted(map(int, choice.options))[-phase.depths :])
        elif kind in "ke":
            given[choice.name] = rng.choice(phase.kernels if kind == "k" else phase.expands)
        elif kind == "m" and len(phase.expands) == 1:
            given[choice.name] = max(map(int, choice.options))
    return macro.space.random(rng, given)


def trained_supernet(about: Subject, settings: SupernetSettings) -> ElasticNet:
    """The supernet after all phases, once: every phase is kept by content, and goes on after Ctrl-C."""
    macro, context = about.macro, about.context
    assert isinstance(macro, Stagewise)
    net = seeded(lambda: ElasticNet(macro), context.seed)
    assert isinstance(net, ElasticNet)
    chosen = settings.model_dump(include=LEARNED)
    teacher: ElasticNet | None = None
    for index, phase in enumerate(phases(macro, settings.shrink)):
        checkpoint = about.checkpoint(phase.name, settings=chosen)
        key = context.cache.key(about.slug, *about.key(), chosen, index, phase.name)

        def run(
            phase: Phase = phase, teacher: ElasticNet | None = teacher, at: Path = checkpoint
        ) -> dict[str, np.ndarray]:
            if phase.sort:
                net.sort_channels(phase.sort)
            _train(about, settings, net, teacher, phase, at)
            return {name: value.numpy() for name, value in net.state_dict().items()}

        held = context.cache.arrays(key, run)
        checkpoint.unlink(missing_ok=True)
        shapes = net.state_dict()
        net.load_state_dict({name: torch.from_numpy(v).reshape(shapes[name].shape) for name, v in held.items()})
        if teacher is None and settings.shrink:
            teacher = ElasticNet(macro)
            teacher.load_state_dict(net.state_dict())
            teacher.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    return net.eval()


def _train(
    about: Subject,
    settings: SupernetSettings,
    net: ElasticNet,
    teacher: ElasticNet | None,
    phase: Phase,
    checkpoint: Path,
) -> None:
    macro, images, context = about.macro, about.images, about.context
    assert isinstance(macro, Stagewise)
    first = teacher is None
    plain = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": plain, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    lr = settings.lr if first else settings.phase_lr
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    later = len(phases(macro)) - 1
    steps = settings.full_steps if first else settings.phase_steps
    if not settings.shrink:
        steps = settings.full_steps + later * settings.phase_steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    largest = macro.extreme(True)

    def step(index: int) -> Tensor:
        x, y = images.batch(settings.batch)
        x = channels_last(x)
        sizes = macro.resolutions
        if sizes:  # one resolution a batch
            side = random.Random(f"{context.seed} {index} r").choice(sizes)
            x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        soft = None
        if teacher is not None:
            teacher.train()
            with torch.no_grad():
                soft = torch.softmax(teacher(x, largest), 1)
        total = torch.zeros(())
        for repeat in range(phase.draws):
            genotype = draw(macro, phase, random.Random(f"{context.seed} {index} {repeat}"))
            out = net(x, genotype)
            total = total + F.cross_entropy(out, y)
            if soft is not None:
                total = total + settings.kd_ratio * F.cross_entropy(out, soft)
        return total  # summed, not averaged

    fit(
        Training(net, optimizer, schedule, clip=5.0),
        step,
        steps,
        seed=context.seed,
        what=f"supernet, {phase.name}",
        progress=context.progress,
        checkpoint=checkpoint,
    )


def specialised(about: Subject, settings: SupernetSettings, net: ElasticNet, genotype: Genotype) -> nn.Module:
    """A sub-network cut out, its batch norm estimated again: ready to use."""
    plain = net.extract(genotype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return recalibrate(plain, about.images.train, settings.bn_images, about.images.noise)


def inherited(
    about: Subject, settings: SupernetSettings, net: ElasticNet, genotypes: Sequence[Genotype]
) -> list[tuple[float, float]]:
    """(validation, test) accuracies of sub-networks with the supernet's weights, each judged once."""
    context, images = about.context, about.images
    chosen = settings.model_dump(include={*LEARNED, "bn_images"})

    def judge(genotype: Genotype) -> list[float]:
        plain = specialised(about, settings, net, genotype)
        return [accuracy(plain, images.valid), accuracy(plain, images.test)]

    found = []
    with context.progress.task("judging sub-networks", len(genotypes)) as task:
        for genotype in genotypes:
            key = context.cache.key(f"{about.slug}-inherited", *about.key(), chosen, about.macro.space.text(genotype))
            valid, test = context.cache.json(key, partial(judge, genotype))
            found.append((valid, test))
            task.advance()
    return found
