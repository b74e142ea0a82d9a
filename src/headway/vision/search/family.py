"""What the four searches share around their policies: settings of a network, its model, and the measured end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from headway.core.budget import Budget
from headway.core.errors import BadInput, HeadwayError
from headway.core.files import sha256_of
from headway.core.jsontext import canonical_json
from headway.core.module_model import ModuleModel
from headway.core.module_origin import Origin
from headway.core.recipe import Step
from headway.core.system import Found, FoundNet, SearchContext, Settings
from headway.vision.data import image_workload
from headway.vision.search.blocks import NetSpec
from headway.vision.search.cost_table import CostTable, measure_nets, measure_table
from headway.vision.search.images import Images, digits, read_images
from headway.vision.search.network import Macro, sample_of
from headway.vision.search.space import Genotype
from headway.vision.search.train import TrainRecipe, accuracy, trained

SHAPE = ("variant", "space", "genotype", "channels", "classes", "size", "bias", "expand_e1")
"""Settings that shape a network, and so belong to its origin."""
VALIDATED = 20
"""Whole networks on which a cost table is fitted and judged, half of them each."""

Spaces = Mapping[str, Callable[[], Macro]]


class NetSettings(Settings):
    """What says which network it is: a published `variant` (a field of the subclass), or a genotype of a space."""

    space: str = Field("", description="search space of `genotype`; empty: a published net")
    genotype: str = Field("", description="a network of that space, as a search writes it")
    channels: int = Field(0, ge=0, le=64, description="channels of the images; 0: as published, or as the space has")
    classes: int = Field(0, ge=0, le=100_000, description="classes; 0: as published, or as the space has")
    size: int = Field(0, ge=0, le=4096, description="pixels; side of the images; 0: as published, or as the space has")
    latency_batch: int = Field(1, ge=1, le=1024, description="images in the batch whose latency is searched for")
    final_steps: int = Field(200, ge=1, description="steps that a network found is trained; 200 is D400's recipe")
    final_batch: int = Field(48, ge=2, description="images; batch of these steps")
    final_lr: float = Field(0.15, gt=0, description="peak of the one-cycle learning rate of these steps")


def macro_of(slug: str, spaces: Spaces, name: str, channels: int = 0, classes: int = 0, size: int = 0) -> Macro:
    """A space by name, for other images where numbers are given; raises `BadInput` naming the spaces there are."""
    if name not in spaces:
        raise BadInput(f"{slug} has no space {name!r}", f"its spaces are: {', '.join(spaces)}")
    made = spaces[name]()
    if not (channels or classes or size):
        return made
    return made.for_images(channels or made.stem.inside, classes or made.head.classes, size or made.size)


def build(slug: str, settings: NetSettings, spaces: Spaces, published: Callable[[], NetSpec]) -> ModuleModel:
    """The network that the settings name, with random weights; raises `BadInput` where they name none."""
    if bool(settings.space) != bool(settings.genotype):
        raise BadInput(f"{slug}: space and genotype go together", "give both, or a variant alone")
    images = (settings.channels, settings.classes, settings.size)
    if settings.genotype:
        macro = macro_of(slug, spaces, settings.space, *images)
        return as_model(slug, settings, macro.net(macro.space.parse(settings.genotype)))
    spec = published()
    channels, classes, size = images
    return as_model(
        slug,
        settings,
        spec.for_images(channels or spec.stem.inside, classes or spec.head.classes, size or spec.size),
    )


def as_model(slug: str, settings: NetSettings, spec: NetSpec, module: nn.Module | None = None) -> ModuleModel:
    """A network as a model; without `module` its weights are random, and the same at every call."""
    if module is None:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            module = spec.build()
    shape = settings.model_dump(include=set(SHAPE), exclude_defaults=True)
    if not settings.genotype:
        shape["variant"] = getattr(settings, "variant")  # noqa: B009  (a field of every subclass)
    text = str(Step(slug, {name: shape[name] for name in SHAPE if name in shape}))
    return ModuleModel(
        module,
        sample_of(spec),
        name=text,
        task="classification",
        origin=Origin("family", text),
        workload=partial(image_workload, size=spec.size) if spec.stem.inside == 3 else None,
    )


@dataclass
class Subject:
    """What a search is about: a space for certain images, its costs on this machine, how its networks are judged."""

    slug: str
    space: str
    macro: Macro
    images: Images
    table: CostTable
    settings: NetSettings
    context: SearchContext

    @property
    def recipe(self) -> TrainRecipe:
        """How a network of the space is trained on its own."""
        return TrainRecipe(self.settings.final_steps, self.settings.final_batch, self.settings.final_lr)

    def latency(self, genotype: Genotype) -> float:
        """Predicted seconds a batch."""
        return self.table.net(self.macro.net(genotype))

    def family_settings(self, genotype: Genotype) -> dict[str, Any]:
        """The settings that build the network of a genotype again."""
        made: dict[str, Any] = {"space": self.space, "genotype": self.macro.space.text(genotype)}
        if self.context.data is not None:
            images = self.images
            made |= {"channels": images.channels, "classes": images.classes, "size": images.size}
        return made

    def checkpoint(self, what: str, **settings: Any) -> Path:
        """Where a training that belongs to these settings goes on after Ctrl-C."""
        key = sha256_of(canonical_json([what, self.key(), settings]))
        return self.context.checkpoints / f"{self.slug}-{key[:16]}.pt"

    def key(self) -> list[Any]:
        """What everything learned on this subject depends on, besides costs and the search's own settings."""
        return [self.slug, self.space, self.images.digest, self.context.seed]

    def train(self, genotype: Genotype) -> tuple[nn.Module, float, float]:
        """A network trained from scratch with the search's seed: (module, validation accuracy, test accuracy)."""
        spec = self.macro.net(genotype)
        checkpoint = self.checkpoint("final", spec=asdict(spec), recipe=asdict(self.recipe))
        context = self.context
        done = trained(spec, self.images, self.recipe, context.seed, context.cache, context.progress, checkpoint)
        checkpoint.unlink(missing_ok=True)
        return done.module, done.valid, done.test

    def finish(
        self,
        ranked: Sequence[Genotype],
        budget: Budget,
        predicted: Mapping[str, Mapping[str, float]],
        notes: Sequence[str] = (),
        module_of: Callable[[Genotype], nn.Module] | None = None,
    ) -> Found:
        """Train (or take by `module_of`) and measure candidates, best first, until one meets the budget.

        Whole networks are measured beside the largest one, interleaved. `predicted`: what the search thinks of
        networks, by the text of their genotype. Gives the nearest to the budget where at most 4 tries meet it not.
        """
        text = self.macro.space.text
        largest = self.macro.extreme(True)
        tried: dict[str, FoundNet] = {}
        modules: dict[str, nn.Module] = {}
        reference = 0.0
        for genotype in [largest, *ranked[:4]]:
            name = text(genotype)
            if name not in tried:
                modules[name] = module_of(genotype) if module_of else self.train(genotype)[0]
                tested = accuracy(modules[name].eval(), self.images.test)
                reference = reference or tested
                net = FoundNet(self.family_settings(genotype), {"accuracy": tested}, predicted.get(name, {}))
                tried[name] = self._measured(net, genotype, largest, modules[name], reference)
            if genotype is not largest and budget.met(tried[name].measured):
                break
        names = [text(genotype) for genotype in ranked[:4] if text(genotype) in tried]
        chosen = min(names, key=lambda n: sum(miss.missed_by for miss in budget.check(tried[n].measured)))
        settings = type(self.settings).parse(tried[chosen].settings, self.slug)
        spec = self.macro.net(self.macro.space.parse(chosen))
        model = as_model(self.slug, settings, spec, modules[chosen].to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
        others = [net for name, net in tried.items() if name not in (chosen, text(largest))]
        for name, values in predicted.items():
            if name not in tried:
                others.append(FoundNet(self.family_settings(self.macro.space.parse(name)), {}, values))
        return Found(model, tried[chosen], tried[text(largest)], others, notes)

    def _measured(
        self, net: FoundNet, genotype: Genotype, largest: Genotype, module: nn.Module, reference: float
    ) -> FoundNet:
        quality = net.measured["accuracy"] / max(reference, 1e-9)
        measured = {**self.measure(genotype, largest, module), "quality": quality, **net.measured}
        return replace(net, measured=measured, predicted={"latency_s": self.latency(genotype), **net.predicted})

    def measure(self, genotype: Genotype, largest: Genotype, module: nn.Module) -> dict[str, float]:
        """`latency_s` of a whole network, timed beside the largest one, and `size_bytes`."""
        seconds = measure_nets(
            [self.macro.net(genotype), self.macro.net(largest)],
            self.settings.latency_batch,
            seed=self.context.seed,
            progress=self.context.progress,
        )[0]
        size = sum(v.numel() * v.element_size() for v in module.state_dict().values())
        return {"latency_s": seconds, "size_bytes": float(size)}


def subject(slug: str, spaces: Spaces, space: str, settings: NetSettings, context: SearchContext) -> Subject:
    """Read the images and measure the costs of a space. Raises `BadInput` for a space that there is not."""
    macro, images = space_and_images(slug, spaces, space, settings, context)
    return Subject(slug, space, macro, images, table_of(macro, settings.latency_batch, context), settings, context)


def space_and_images(
    slug: str, spaces: Spaces, space: str, settings: NetSettings, context: SearchContext
) -> tuple[Macro, Images]:
    """A space for the user's images, or with its own. Raises `BadInput` for a space that there is not."""
    if settings.genotype or settings.space:
        raise BadInput(f"{slug}: a search takes no genotype", f"write: headway search {slug} {space}")
    plain = macro_of(slug, spaces, space)
    if context.data is not None:
        images = read_images(context.data, context.seed)
        return macro_of(slug, spaces, space, images.channels, images.classes, images.size), images
    if (plain.stem.inside, plain.head.classes, plain.size) != (1, 10, 16):
        raise BadInput(f"the space {space} has no images of its own", "give a .npz file with --data")
    return plain, digits()


def table_of(macro: Macro, batch: int, context: SearchContext) -> CostTable:
    """The costs of a space on this machine, measured once a machine, number of threads and batch."""
    import random

    rng = random.Random(0)
    nets = [macro.net(macro.space.random(rng)) for _ in range(VALIDATED)]
    key = context.cache.key(
        "cost-table",
        context.target.fingerprint,
        torch.get_num_threads(),
        batch,
        [spec.key(size) for spec, size in macro.layers_in_use()],
    )
    document = context.cache.json(
        key,
        lambda: measure_table(macro.layers_in_use(), nets, batch, seed=0, progress=context.progress).to_json(),
    )
    return CostTable.from_json(document)


def budget_latency(budget: Budget, cheapest: float, slug: str) -> float | None:
    """The limit on latency, in seconds; raises an error of exit code 1 for one below the cheapest network's."""
    limit = budget.limit("latency")
    if limit is not None and limit < cheapest:
        raise HeadwayError(
            f"latency<={1e3 * limit:.4g}ms is below the fastest network's {1e3 * cheapest:.4g}ms",
            f"allow {slug} at least that, or choose another space",
        )
    return limit
