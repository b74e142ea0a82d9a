"""What a `ModuleModel` is asked and how its answers are judged: inputs in three disjoint splits, and an agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headway.core.errors import BadInput
from headway.core.files import sha256_of
from headway.core.model import Task

Inputs = tuple[Any, ...]
Scores = npt.NDArray[np.float64]
"""One number per item of a batch, 1 where the answers are the same."""
Agreement = Callable[..., Scores]
"""(output of the original, output of the candidate) -> scores; with the right output as the third where it is known."""


@dataclass(frozen=True)
class ModuleWorkload:
    """Each piece of a split is one tuple of arguments. `calibration` is never scored, `heldout` never searched on."""

    calibration: Sequence[Inputs]
    search: Sequence[Inputs]
    heldout: Sequence[Inputs]
    agreement: Agreement
    metric: str
    """What a score is, e.g. `top-1 agreement`."""
    batch: Callable[[int, int], Inputs] | None = None
    """(items, tokens of each) -> inputs of one size to be timed; None: the sample is repeated."""
    truth: Mapping[str, Sequence[Any]] | None = None
    """The right outputs of the pieces of `search` and of `heldout`, where they are known and the agreement wants them.
    """

    def scores(self, split: str, piece: int, original: Any, candidate: Any) -> Scores:
        """How a candidate's output for a piece of `search` or `heldout` is judged."""
        known = () if self.truth is None else (self.truth[split][piece],)
        return self.agreement(original, candidate, *known)


def digest(value: Any) -> str:
    """Hex digest of inputs by content: tensors of any type, arrays, numbers, text and containers of them."""
    return sha256_of(*_parts(value))


def _parts(value: Any) -> Iterator[bytes | str]:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"tensor {plain.dtype} {tuple(plain.shape)}"
        yield plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    elif isinstance(value, np.ndarray):
        yield f"array {value.dtype.str} {value.shape}"
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}"
        for key, held in value.items():
            yield repr(key)
            yield from _parts(held)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield f"sequence {len(value)}"
        for held in value:
            yield from _parts(held)
    else:
        yield f"{type(value).__name__} {value!r}"


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in whatever a module returned, in order."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_in(getattr(output, field.name))
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from tensors_in(value)


def first_tensor(output: Any) -> Tensor:
    """The first floating-point tensor of an output; raises `BadInput` when there is none."""
    for tensor in tensors_in(output):
        return tensor
    raise BadInput("the module returns no floating-point tensor", "give a quality function: --quality module:function")


def top1_agreement(original: Any, candidate: Any) -> Scores:
    """1 where both choose the same class: logits (..., classes) -> one score per row."""
    a, b = first_tensor(original), first_tensor(candidate)
    same = (a.argmax(-1) == b.argmax(-1)) & torch.isfinite(b).all(-1)
    return same.reshape(-1).cpu().numpy().astype(np.float64)


def cosine(original: Any, candidate: Any) -> Scores:
    """Cosine of each row with the original's: embeddings (..., width) -> one score per row; 0 where not finite."""
    a, b = first_tensor(original).double(), first_tensor(candidate).double()
    return _scores(torch.nn.functional.cosine_similarity(a, b, dim=-1).reshape(-1))


def closeness(original: Any, candidate: Any) -> Scores:
    """1 - relative error, at least 0: `1 - |b - a| / |a|` over everything returned for one item (first axis)."""
    a, b = _rows(original), _rows(candidate)
    scale = a.norm(dim=1)
    error = (b - a).norm(dim=1)
    relative = torch.where(scale > 0, error / scale.clamp_min(1e-300), (error > 0).double())
    relative = torch.where(torch.isfinite(scale) & torch.isfinite(error), relative, torch.inf)
    return _scores((1.0 - relative).clamp_min(0.0))


def psnr_ratio(original: Any, candidate: Any, truth: Any) -> Scores:
    """PSNR of the candidate over the original's, both against the right picture; one score per picture.

    Values in [0, 1]. At least 0, and 0 where not finite; above 1 where the candidate comes closer than the original.
    """
    right, a, b = _rows(truth), _rows(original), _rows(candidate)
    ours, theirs = (-10.0 * (found - right).square().mean(1).clamp_min(LEAST_ERROR).log10() for found in (b, a))
    ratio = torch.where(theirs > 0, ours / theirs, (ours >= theirs).double())
    return _scores(torch.where(torch.isfinite(b).all(1), ratio, 0.0).clamp_min(0.0))


LEAST_ERROR = 1e-12
"""Mean square at which a PSNR ends, 120 dB: finer than float32 is on [0, 1]."""


def agreement_for(task: Task) -> tuple[Agreement, str]:
    """The agreement of a task, and its name."""
    known: dict[str, tuple[Agreement, str]] = {
        "classification": (top1_agreement, "top-1 agreement"),
        "embedding": (cosine, "mean cosine"),
    }
    return known.get(task, (closeness, "1 - relative error"))


def workload_from(
    inputs: Sequence[Inputs], task: Task = "module", agreement: Agreement | None = None
) -> ModuleWorkload:
    """A workload from a user's own inputs: of every five, one calibrates, one is searched on, three are held out.

    Raises `BadInput` for fewer than three inputs, which three disjoint splits need.
    """
    if len(inputs) < 3:
        raise BadInput(
            f"{len(inputs)} inputs cannot be split for calibration, search and proof", "give at least 3, better 50"
        )
    default, metric = agreement_for(task)
    parts = [tuple(inputs[start::5]) for start in range(5)]
    return ModuleWorkload(
        calibration=parts[0],
        search=parts[1],
        heldout=parts[2] + parts[3] + parts[4],
        agreement=agreement or default,
        metric=metric if agreement is None else getattr(agreement, "__name__", "agreement"),
    )


def _rows(output: Any) -> Tensor:
    """(items, values) float64: everything returned, one row per index of the first axis (one row, if they differ)."""
    tensors = list(tensors_in(output))
    if not tensors:
        raise BadInput(
            "the module returns no floating-point tensor", "give a quality function: --quality module:function"
        )
    items = {t.shape[0] if t.dim() > 0 else 1 for t in tensors}
    count = items.pop() if len(items) == 1 else 1
    return torch.cat([t.double().reshape(count, -1) if count else t.double().reshape(0, 0) for t in tensors], 1)


def _scores(values: Tensor) -> Scores:
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).cpu().numpy().astype(np.float64)
