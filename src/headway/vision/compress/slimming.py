"""`slimming`: a smaller network cut from the one given, and taught to give what that gives.

Middle channels between two products go (`channels`: found from the calls of one forward, in whatever network), and
whole residual blocks where that loses less; what is left is mended by least squares (`cutting`); how much of each
group goes is the same for all, or an exact allocation over measured costs and measured losses (`widths`); then the
network is distilled from the original on views of the calibration images (`distil`), and keeps the last weights where
they do better on images held out. It is elastic width and depth of once-for-all networks (Cai et al. 2020, arXiv
1908.09791: channels sorted by importance, nested) for one that is trained already.

Seen on EfficientNet-Lite0 and the 64 calibration views of six pictures that come with it, before any distillation
(agreement with the original on 160 held-out views of four other pictures):

    multiply-adds   latency   values   widths     agreement
    0.89            0.93      0.89     uniform    0.74 [0.68, 0.81]
    0.89            0.89      0.62     searched   0.32 [0.25, 0.39]
    0.74            0.81      0.74     uniform    0.41 [0.33, 0.49]
    0.76            0.78      0.47     searched   0.21 [0.15, 0.28]

The search believes its images: on these the original itself is undecided (mean confidence 0.21, 0.60 on other
photographs), so that late layers seem to matter little. Hence `uniform` is the default, and `searched` is for users who
bring many images. Distillation on views of those six pictures was not seen to help at all: it is there for users'
images.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.files import cache_folder, make_folder
from headway.core.jsontext import plain
from headway.core.model import Model
from headway.core.module_model import ModuleModel, native_forward
from headway.core.module_workload import digest, first_tensor
from headway.core.registry import source_digest
from headway.core.system import YES, Context, Costs, NetworkTransform, Settings, Verdict, no
from headway.core.target import Target
from headway.vision.compress.channels import Group, groups_of
from headway.vision.compress.cutting import cut, moments_of
from headway.vision.compress.distil import Course, apart, distilled
from headway.vision.compress.widths import LEVELS, CostKind, Ground, Width, measured, ordered, searched, uniform
from headway.vision.count import count
from headway.vision.runtime.capture import NotNative

SYSTEM = Card(
    slug="slimming",
    title="Slimmed and distilled network",
    paper="in the manner of Once-for-All: Cai et al., ICLR 2020, arXiv 1908.09791",
    kind="transform",
    slot="network",
    summary="a network over images with fewer middle channels and blocks, searched for and distilled from the original",
    claim="keeps the share of latency or multiply-adds that is asked for; how near it stays is up to the images given",
    needs=("static_weights", "float_weights"),
    breaks=("bitwise_equal",),
    reference=True,
)

HELD_OUT = 8
"""One image of so many is held out."""
LEAST_IMAGES = 8
JUDGED = 16
"""Images on which widths are compared."""
BATCH = 8
"""Images of one pass for moments."""


FEWEST_STEPS = 20
LOOK = 12
"""Images through a network and back that one width of a group takes to be looked at, about."""


class SlimmingSettings(Settings):
    """Defaults suit a network of 5 M values at 224 px: some minutes on one core."""

    keep: float = Field(0.75, gt=0, le=1, description="share of the cost to keep")
    cost: CostKind = Field("latency", description="what is kept: latency measured here, or multiply-adds (macs)")
    steps: int = Field(100, ge=0, le=100_000, description="steps of distillation; 0 cuts and mends alone")
    batch: int = Field(8, ge=1, le=1024, description="images of one step")
    lr: float = Field(1e-4, gt=0, le=1, description="first learning rate of Adam; falls as a cosine")
    temperature: float = Field(1.0, gt=0, le=100, description="softens both distributions (Hinton et al. 2015)")
    widths: Literal["uniform", "searched"] = Field(
        "uniform", description="the same share of every group, or searched: for many images such as will be seen"
    )
    channels: Literal["importance", "random"] = Field("importance", description="random: the control of the ranking")


class Slimming(NetworkTransform[SlimmingSettings]):
    """Belongs before all others of a recipe."""

    card = SYSTEM
    settings = SlimmingSettings

    def applies(self, model: Model, target: Target) -> Verdict:
        if model.task == "language" or not isinstance(model, ModuleModel):
            return no("it is no network over images")
        if model.packed_weights():
            return no("its weights are quantised already: slim the original")
        found = _known(model)
        return YES if not isinstance(found, str) else no(found)

    def predict(self, model: Model, target: Target, settings: SlimmingSettings) -> Costs:
        return Costs(size_bytes=model.size_bytes() * self.shares(settings)["size_bytes"])

    def shares(self, settings: SlimmingSettings) -> dict[str, float]:
        """Values go faster than time: late layers have most of them, early ones take most of the time."""
        return {"latency_s": settings.keep, "size_bytes": settings.keep, "memory_bytes": 0.5 + 0.5 * settings.keep}

    def options(self, model: Model, target: Target) -> Sequence[dict[str, Any]]:
        return tuple({"keep": keep} for keep in (0.9, 0.8, 0.7, 0.6, 0.5))

    def fitted(
        self, model: Model, settings: SlimmingSettings, context: Context, seconds: float
    ) -> Mapping[str, Any] | None:
        """Fewer steps where the time is short, by halves, so that a second run's clock seldom changes them."""
        model = cast(ModuleModel, model)
        groups, one = _known(model), _seconds_of_image(model)
        images = sum(len(piece[0]) for piece in context.calibration or ())
        looked = one * (images + len(groups) * LEVELS * LOOK)
        steps = settings.steps
        while looked + 1.3 * one * settings.batch * steps > seconds:
            steps //= 2
            if steps < FEWEST_STEPS:
                return None
        return {} if steps == settings.steps else {"steps": steps}

    def apply(self, model: Model, settings: SlimmingSettings, context: Context) -> Model:
        """Raises `BadInput` with fewer than eight calibration images, and for a share that cannot be reached."""
        model = cast(ModuleModel, model)
        if model.packed_weights():
            raise BadInput("slimming: the weights before it are quantised already", "put slimming first in the recipe")
        if settings.keep == 1.0:
            return model
        return _Slimming(model, settings, context).made()


_KNOWN: WeakKeyDictionary[ModuleModel, list[Group] | str] = WeakKeyDictionary()


def _known(model: ModuleModel) -> list[Group] | str:
    """The groups of a model whose channels can be cut, or why there are none."""
    if model not in _KNOWN:
        _KNOWN[model] = _found(model)
    return _KNOWN[model]


def _found(model: ModuleModel) -> list[Group] | str:
    sample = model.sample[0] if len(model.sample) == 1 else None
    if not isinstance(sample, Tensor) or sample.ndim != 4 or sample.dtype != torch.float32 or not len(sample):
        return "its input is no batch of images"
    module = model.module()
    try:
        groups = sound(module, groups_of(module, sample[:1]), sample[:1])
    except NotNative as error:
        return f"its calls cannot be followed ({error})"
    return groups or "no channels of it lie between two products alone"


def sound(module: nn.Module, groups: Sequence[Group], image: Tensor) -> list[Group]:
    """The groups whose cut does what it should: a network that also knows its sizes otherwise has others."""

    def holds(some: Sequence[Group]) -> bool:
        half = {group.name: torch.arange(0, group.width, 2) for group in some}
        blank = copy.deepcopy(module).eval()
        with torch.no_grad():
            for group in some:
                for reader in group.readers:
                    cast(Tensor, blank.get_submodule(reader).weight)[:, 1::2] = 0.0
            try:
                wanted, found = (first_tensor(each(image)) for each in (blank, cut(blank, some, half)[0]))
            except Exception:  # whatever a network raises whose code holds its sizes
                return False
        return found.shape == wanted.shape and bool(
            (found - wanted).abs().max() <= 1e-3 * wanted.abs().max().clamp_min(1e-30)
        )

    return list(groups) if not groups or holds(groups) else [group for group in groups if holds([group])]


def _seconds_of_image(model: ModuleModel) -> float:
    """What one image takes through the network and back."""
    module, image = model.module(), cast(Tensor, model.sample[0])[:1]
    took = []
    for _ in range(3):
        start = time.perf_counter()
        first_tensor(module(image.clone().requires_grad_())).sum().backward()
        took.append(time.perf_counter() - start)
    return min(took)


class _Slimming:
    """One model slimmed: what is found is kept in the step cache, widths and weights apart."""

    def __init__(self, model: ModuleModel, settings: SlimmingSettings, context: Context) -> None:
        self.model, self.settings, self.context = model, settings, context
        groups = _known(model)
        assert not isinstance(groups, str)
        self.groups = groups
        self.module = model.module()
        images = _images(model, context.calibration or ())
        self.held_out, self.seen = images[::HELD_OUT], _without(images, HELD_OUT)
        self.key = [source_digest(type(self).__module__), model.fingerprint(), digest(images), context.seed]

    def made(self) -> ModuleModel:
        settings, context = self.settings, self.context
        chosen = self._kept("widths", [settings.keep, settings.cost, settings.widths, settings.channels], self._widths)
        kept = {
            name.removeprefix("kept "): torch.from_numpy(value) for name, value in chosen.items() if name != "share"
        }
        share = float(chosen["share"][0])
        smaller, sizes = cut(self.module, self.groups, kept)
        trained = self._kept("weights", settings.model_dump(mode="json"), partial(self._weights, kept))
        before, after = (float(trained.pop(name)[0]) for name in ("before", "after"))
        smaller.load_state_dict({name: torch.from_numpy(value) for name, value in trained.items()}, assign=True)
        made = ModuleModel(
            smaller.requires_grad_(False),
            self.model.sample,
            name=self.model.name,
            task=self.model.task,
            origin=self.model.origin,
            attachments=self.model.attachments,
            workload=self.model.workload_of,
            cut=self.model.cut.then(sizes),
        )
        made.given, made.notes = self.model.given, self.model.notes
        context.notes.append(self._said(made, sizes.left_out, share, before, after))
        return made

    def _kept(self, what: str, settings: Any, build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        cache = self.context.cache
        key = ["slimming", what, *self.key, self._here(), settings]
        return build() if cache is None else cache.arrays(cache.key(*key), build)

    def _widths(self) -> dict[str, Any]:
        """`kept NAME`: the channels of each group that stay; `share`: of the cost."""
        settings, context = self.settings, self.context
        with context.progress.task("which channels the answer feels"):
            moments = self._moments()
        ground = Ground(
            self.module,
            self.groups,
            moments,
            ordered(moments, self.groups, settings.channels, context.seed),
            self._runs(self.module),
            self.seen[:: max(1, len(self.seen) // JUDGED)][:JUDGED],
            cast(Tensor, self.model.sample[0])[:1],
            self.model.task,
            settings.cost,
            self._runs,
            context.seed,
        )
        if settings.widths == "uniform":
            widths, share = uniform(ground, settings.keep)
        else:
            table = self._table(ground)
            widths, share = searched(ground, table, settings.keep)
        kept = {f"kept {name}": channels.numpy() for name, channels in ground.kept(widths).items()}
        return {**kept, "share": np.array([share])}

    def _table(self, ground: Ground) -> dict[str, list[Width]]:
        """Of this model, whatever is to be kept of it."""
        cache, context = self.context.cache, self.context

        def build() -> Any:
            return plain(measured(ground, context.progress))

        key = ["slimming", "table", *self.key, self._here(), ground.cost, self.settings.channels]
        held = build() if cache is None else cache.json(cache.key(*key), build)
        return {name: [Width(**width) for width in widths] for name, widths in held.items()}

    def _here(self) -> list[Any]:
        """What measured costs depend on besides the network."""
        return [self.context.target.fingerprint, self.context.threads] if self.settings.cost == "latency" else []

    def _moments(self) -> Any:
        key = digest(self.key)
        if f"slimming {key}" not in self.context.held:
            batches = torch.split(self.seen, BATCH)
            made = moments_of(self.module, self.groups, batches, self.model.task, self.context.seed)
            self.context.held[f"slimming {key}"] = made
        return self.context.held[f"slimming {key}"]

    def _runs(self, module: nn.Module) -> Callable[[Tensor], Any]:
        plain: Callable[[Tensor], Any] = torch.no_grad()(module)
        return native_forward(module, self.model.origin.kind) or plain

    def _weights(self, kept: dict[str, Tensor]) -> dict[str, Any]:
        """The values of the smaller network; `before` and `after`: its divergence on images held out."""
        settings, context = self.settings, self.context
        smaller = copy.deepcopy(cut(self.module, self.groups, kept, self._moments())[0])  # what is whole is the model's
        teacher = self._runs(self.module)
        values = {name: value.clone() for name, value in smaller.state_dict().items()}
        before = after = apart(smaller, teacher, self.held_out, self.model.task)
        if settings.steps:
            course = Course(settings.steps, settings.batch, settings.lr, settings.temperature, context.seed)
            checkpoint = self._checkpoint()
            distilled(smaller, teacher, self.seen, self.model.task, course, context.progress, checkpoint)
            after = apart(smaller, teacher, self.held_out, self.model.task)
            if after < before:
                values = smaller.state_dict()
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
        arrays = {name: value.detach().contiguous().numpy() for name, value in values.items()}
        return {**arrays, "before": np.array([before]), "after": np.array([after])}

    def _checkpoint(self) -> Path | None:
        if self.context.cache is None:
            return None
        name = digest([self.key, self.settings.model_dump(mode="json"), self.context.threads])
        return make_folder(cache_folder("training")) / f"slimming-{name[:16]}.pt"

    def _said(self, made: ModuleModel, left_out: Sequence[str], share: float, before: float, after: float) -> str:
        sample = (self.model.sample[0][:1],)
        old, new = count(self.module, sample), count(made.module(), sample)
        blocks = f", without {', '.join(left_out)}" if left_out else ""
        taught = f", {before:.4f} -> {after:.4f} from the original on held-out images"
        if self.settings.steps and after >= before:
            taught = f", {before:.4f} from the original on held-out images ({after:.4f} taught: left as cut)"
        return (
            f"slimming: {new.layer_macs / old.layer_macs:.2f} of the multiply-adds, "
            f"{new.stored / old.stored:.2f} of the values, {share:.2f} of the {self.settings.cost}{blocks}{taught}"
        )


def _images(model: ModuleModel, calibration: Sequence[tuple[Any, ...]]) -> Tensor:
    """The calibration images as one batch; those of another size than the first are left out."""
    given = [piece[0] for piece in calibration if isinstance(piece[0], Tensor) and piece[0].ndim == 4]
    same = [images.float() for images in given if images.shape[1:] == given[0].shape[1:]]
    images = torch.cat(same) if same else torch.empty(0)
    if len(images) < LEAST_IMAGES:
        raise BadInput(
            f"slimming: {len(images)} calibration images for {model.name}, it learns from {LEAST_IMAGES} at least",
            "give more images with --data",
        )
    return images


def _without(images: Tensor, every: int) -> Tensor:
    chosen = torch.ones(len(images), dtype=torch.bool)
    chosen[::every] = False
    return images[chosen]
