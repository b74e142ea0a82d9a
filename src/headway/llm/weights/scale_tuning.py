"""`scale-tuning`: the numbers of quantised weights (scales, minima, alphas) trained to give what the original gives.

Self-distillation in the manner of EfficientQAT's second phase (arXiv 2407.11062): codes stay as they are, so that bytes
and kernels do, and Adam moves the numbers of all groups together down the divergence from the original's own
distribution on the calibration inputs: KL(original || tuned) of a position for language models and classifiers, the
relative squared error of anything else. A number moves in units of its group's scale, around the middle of its codes.

Seen on SmolLM2 at 3 bits in groups of 64, 14 sequences of 256 tokens (KL held out): plain rounding 1.05 -> 0.64 in 14
steps at 2e-3; GPTQ, whose numbers were fitted to such text already, 0.128 -> 0.119 in 28 steps at 5e-4 and no gain at
2e-3, where sequences that were trained on gained a third: more text is what helps.

A share of the inputs is held out; where the divergence there is not lower afterwards, the weights stay as they were.
Decided: activations are not rounded while tuning, since errors of weights rule wherever 8 bits of activations meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.module_workload import first_tensor
from headway.core.registry import source_digest
from headway.core.system import YES, Context, Costs, Settings, Transform, Verdict
from headway.core.target import Target
from headway.core.weight import F32
from headway.llm.weights.base import StoredWeight
from headway.llm.weights.calibration import key_of
from headway.llm.weights.hadamard import turned
from headway.training.distil import divergence
from headway.training.fit import Training, fit

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

SYSTEM = Card(
    slug="scale-tuning",
    title="Self-distilled scales",
    paper="in the manner of EfficientQAT, phase 2: Chen et al. 2024, arXiv 2407.11062",
    kind="transform",
    slot="training",
    summary="scales of quantised weights trained to give what the original gives; codes, bytes and speed stay",
    claim="of plain 3-bit rounding two fifths of the divergence go in 14 steps, of GPTQ's 7 % in 28 (SmolLM2)",
    needs=("static_weights",),
    breaks=("bitwise_equal",),
    reference=True,
)

HELD_OUT = 8
"""One of so many inputs is held out."""
WARM_UP = 5


class ScaleTuningSettings(Settings):
    """Defaults suit a model of 135 M weights in groups of 64; a step there takes some seconds a core."""

    steps: int = Field(32, ge=1, le=100_000, description="steps of Adam; one calibration input each")
    lr: float = Field(
        5e-4, gt=0, le=1, description="first learning rate, in units of a group's scale; falls as a cosine"
    )
    tokens: int = Field(512, ge=1, le=1 << 20, description="tokens of a sequence that a step reads")


class ScaleTuning(Transform[ScaleTuningSettings]):
    """Belongs behind the weight systems of a recipe."""

    card = SYSTEM
    settings = ScaleTuningSettings

    def applies(self, model: Model, target: Target) -> Verdict:
        return YES

    def predict(self, model: Model, target: Target, settings: ScaleTuningSettings) -> Costs:
        """Nothing but quality changes."""
        return Costs(size_bytes=float(model.size_bytes()))

    def apply(self, model: Model, settings: ScaleTuningSettings, context: Context) -> Model:
        """Raises `BadInput` with fewer than two calibration inputs."""
        original = context.original
        forms = {} if original is None else _tunable(model, original)
        if original is None or not forms:
            context.notes.append(
                "scale-tuning: nothing to tune, it belongs behind a weight system whose weights have scales"
            )
            return model
        pieces = _pieces(context.calibration or (), model.task, settings.tokens)
        if len(pieces) < 2:
            raise BadInput("scale-tuning: fewer than two calibration inputs", "give more text with --text or --data")
        made = _Tuning(model, original, forms, pieces, settings, context)
        if context.cache is None:
            held = made.numbers()
        else:
            parts = [settings.model_dump(), model.fingerprint(), key_of(model, context)]
            key = context.cache.key(self.card.slug, source_digest(type(self).__module__), *parts)
            held = context.cache.arrays(key, made.numbers)
        before, after = (float(held[name][0]) for name in ("before", "after"))
        if after >= before:
            context.notes.append(
                f"scale-tuning: weights stay as they were, {before:.4f} from the original on held-out inputs "
                f"({after:.4f} tuned)"
            )
            return model
        context.notes.append(f"scale-tuning: {before:.4f} -> {after:.4f} from the original on held-out inputs")
        return model.with_weights(
            {
                name: form.with_numbers([held[f"{name} {at}"] for at in range(len(form.parts()))])
                for name, form in forms.items()
            }
        )


def _tunable(model: Model, original: Model) -> dict[str, StoredWeight]:
    """Weights with parts that are not the original's, of layers that only multiply: a head may be the embedding too."""
    layers = dict(model.module().named_modules())
    held = {site.name: original.weight(site.name) for site in original.sites()}
    found = {}
    for site in model.sites():
        weight = model.weight(site.name)
        multiplies = site.kind in ("linear", "conv1x1") and isinstance(layers.get(site.name), nn.Linear | nn.Conv2d)
        if multiplies and weight is not held.get(site.name) and isinstance(weight, StoredWeight) and weight.parts():
            found[site.name] = weight
    return found


def _pieces(calibration: Sequence[tuple[Any, ...]], task: str, tokens: int) -> list[tuple[Any, ...]]:
    """A step's inputs: of a language model one sequence, cut to its first tokens."""
    if task != "language":
        return list(calibration)
    return [(row[None, :tokens],) for (rows,) in calibration for row in rows]


class _Tuning:
    """The readable modules of the original and of the quantised model, and what is trained of the latter."""

    def __init__(
        self,
        model: Model,
        original: Model,
        forms: Mapping[str, StoredWeight],
        pieces: Sequence[tuple[Any, ...]],
        settings: ScaleTuningSettings,
        context: Context,
    ) -> None:
        self.model, self.original, self.forms = model, original, forms
        self.settings, self.context = settings, context
        count = max(1, len(pieces) // HELD_OUT)
        self.seen, self.held_out = pieces[:-count], pieces[-count:]

    def numbers(self) -> dict[str, F32]:
        """`SITE I` for each part of a site's weight; `before` and `after`: the held-out divergence."""
        teacher, student = self.original.module().eval(), self.model.module().eval()
        for parameter in (*teacher.parameters(), *student.parameters()):
            parameter.requires_grad_(False)
        layers = {name: _Tuned(student.get_submodule(name), form) for name, form in self.forms.items()}
        for name, layer in layers.items():
            parent, _, last = name.rpartition(".")
            setattr(student.get_submodule(parent), last, layer)
        away = divergence(self.model.task)

        def lost(arguments: tuple[Any, ...]) -> Tensor:
            with torch.no_grad():
                wanted = first_tensor(teacher(*arguments)).float()
            return away(first_tensor(student(*arguments)).float(), wanted)

        def held_out() -> float:
            with torch.no_grad():
                return sum(float(lost(arguments)) for arguments in self.held_out) / len(self.held_out)

        before, steps = held_out(), self.settings.steps
        trained = nn.ModuleDict({name.replace(".", "/"): layer for name, layer in layers.items()})
        optimizer = torch.optim.Adam(trained.parameters(), self.settings.lr, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda i: min(1.0, (i + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * i / steps))
        )
        fit(
            Training(trained, optimizer, schedule),
            lambda index: lost(self.seen[index % len(self.seen)]),
            steps,
            seed=self.context.seed,
            what="tuning scales",
            progress=self.context.progress,
        )
        for layer in layers.values():  # as they will be stored, rounded
            layer.settle()
        after = {"before": np.array([before], np.float32), "after": np.array([held_out()], np.float32)}
        return after | {
            f"{name} {at}": each for name, layer in layers.items() for at, each in enumerate(layer.stored())
        }


class _Tuned(nn.Module):
    """A linear layer, or a 1x1 convolution, whose weight is made of its form's parts at every call."""

    def __init__(self, layer: nn.Module, form: StoredWeight) -> None:
        super().__init__()
        self.form = form
        self.conv = layer if isinstance(layer, nn.Conv2d) else None
        self.bias = cast("Tensor | None", layer.bias)
        self.parts = form.parts()
        self.codes = [None if part.codes is None else torch.from_numpy(np.array(part.codes)) for part in self.parts]
        self.first = [torch.from_numpy(np.array(part.numbers)) for part in self.parts]
        # What has no codes moves in units of the first part.
        self.units = [self.first[at if codes is not None else 0].abs() for at, codes in enumerate(self.codes)]
        self.moved = nn.ParameterList(nn.Parameter(torch.zeros_like(each)) for each in self.first)
        self.group = getattr(form, "group_size", 0) or form.shape[1]
        size = int(getattr(form, "rotate", 0))
        self.turn = None if not size else torch.from_numpy(turned(np.eye(form.shape[1], dtype=np.float32), size))

    def numbers(self) -> list[Tensor]:
        """Of each part: what it was, and its move in units of a scale. A scale turns around the centre of its codes."""
        made = [first + unit * move for first, unit, move in zip(self.first, self.units, self.moved, strict=True)]
        centre = self.parts[0].centre
        if centre and len(made) > 1:
            made[-1] = made[-1] - centre * (made[0] - self.first[0])
        return made

    @torch.no_grad()
    def stored(self) -> list[F32]:
        return [each.numpy() for each in self.numbers()]

    def settle(self) -> None:
        """Take the numbers as the form stores them."""
        self.form = self.form.with_numbers(self.stored())
        self.first = [torch.from_numpy(np.array(part.numbers)) for part in self.form.parts()]
        for move in self.moved:
            move.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            stride = self.conv.stride
            x = x[..., :: stride[0], :: stride[1]].movedim(-3, -1)
        if self.turn is not None:
            x = x @ self.turn
        y = _Product.apply(x, self.group, self.codes, *self.numbers())  # type: ignore[no-untyped-call]
        if self.bias is not None:
            y = y + self.bias
        return y if self.conv is None else y.movedim(-1, -3)


class _Product(torch.autograd.Function):
    """x (..., in) by a weight of parts; gradients reach x and the numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: int, codes: Sequence[Tensor | None], *numbers: Tensor) -> Tensor:
        columns = x.shape[-1]
        weight = torch.zeros(len(numbers[0]), columns)
        for each, number in zip(codes, numbers, strict=True):
            wide = number.repeat_interleave(group, 1)[:, :columns]
            weight += wide if each is None else each * wide
        ctx.group, ctx.codes = group, codes
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Any:
        found = cast(Any, ctx)
        x, weight = found.saved_tensors
        (gradient,) = gradients
        felt = gradient.flatten(0, -2).T @ x.flatten(0, -2)
        spare = -felt.shape[1] % found.group
        sums = [
            F.pad(felt if codes is None else felt * codes, (0, spare)).unflatten(1, (-1, found.group)).sum(-1)
            for codes in found.codes
        ]
        return gradient @ weight if found.needs_input_grad[0] else None, None, None, *sums
