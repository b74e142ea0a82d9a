"""`fit`: the one loop that trains a network, step by step, and can go on where it was stopped."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headway.core import interrupts
from headway.core.errors import BadFile, BadInput
from headway.core.files import atomic_write_bytes
from headway.core.progress import Progress

Step = Callable[[int], Tensor]
"""The loss of step i: draws its batch from i alone (so that a resumed run sees the same), runs the network."""


@dataclass
class Training:
    """What is trained, and by what: everything that a checkpoint holds."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    """Stepped once per step."""
    clip: float | None = None
    """Largest norm of all gradients together."""
    also: Mapping[str, Any] = field(default_factory=dict)
    """Further objects with `state_dict` and `load_state_dict`, by name (a second optimizer, an average of weights)."""


def fit(
    training: Training,
    step: Step,
    steps: int,
    *,
    seed: int = 0,
    what: str = "training",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    every: int = 200,
) -> list[float]:
    """Train to step `steps`; the losses of all steps, those before a resumption included.

    Each step's random numbers come from (seed, step). With `checkpoint`, a file written every `every` steps and on
    Ctrl-C, a later call with the same arguments goes on from there, and its weights are those of a run that was never
    stopped. Raises `BadInput` when the loss is no longer a number.
    """
    losses = _resume(training, checkpoint) if checkpoint is not None and checkpoint.exists() else []
    training.module.train()
    whole = True  # not in the middle of an update
    try:
        with (progress or Progress()).task(what, steps) as task:
            task.advance(len(losses))
            while len(losses) < steps:
                interrupts.check()
                loss = _gradients(training, step, len(losses), seed)
                whole = False
                _update(training)
                losses.append(loss)
                whole = True
                task.advance()
                if checkpoint is not None and len(losses) % every == 0:
                    _save(training, losses, checkpoint)
    except KeyboardInterrupt:
        if checkpoint is not None and whole:
            _save(training, losses, checkpoint)
        raise
    return losses


def _gradients(training: Training, step: Step, index: int, seed: int) -> float:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed * 1_000_003 + index)
        training.optimizer.zero_grad(set_to_none=True)
        loss = step(index)
        loss.backward()
    value = float(loss.detach())
    if value != value:
        raise BadInput(f"step {index}: the loss is not a number", "lower the learning rate or clip the gradients")
    return value


def _update(training: Training) -> None:
    if training.clip is not None:
        nn.utils.clip_grad_norm_(training.module.parameters(), training.clip)
    training.optimizer.step()
    if training.schedule is not None:
        training.schedule.step()


def _parts(training: Training) -> dict[str, Any]:
    parts: dict[str, Any] = {"module": training.module, "optimizer": training.optimizer, **training.also}
    return parts if training.schedule is None else {**parts, "schedule": training.schedule}


def _save(training: Training, losses: list[float], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"losses": losses, **{name: part.state_dict() for name, part in _parts(training).items()}}, buffer)
    atomic_write_bytes(path, buffer.getbuffer())


def _resume(training: Training, path: Path) -> list[float]:
    try:
        held = torch.load(path, weights_only=True)
        for name, part in _parts(training).items():
            part.load_state_dict(held[name])
        return list(held["losses"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFile(path, 0, f"not a checkpoint of this training ({reason})", "remove it to begin anew") from None
