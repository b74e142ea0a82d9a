"""`Backbone`: what every family's network offers; `BackboneFamily`: how a family becomes a MODEL."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.module_origin import Origin
from headway.core.recipe import Step
from headway.core.system import ModelFamily, Settings
from headway.vision.checkpoint import fill, read_checkpoint
from headway.vision.data import IMAGENET, image_workload, pattern
from headway.vision.fold import fold
from headway.vision.runtime.net import NativeNet


class Backbone(nn.Module):
    """A classifier that is also a source of features, with the interface of `timm`'s networks.

    (n, channels, h, w) float -> (n, num_classes) logits; with `num_classes=0` the pooled features.

    A family's class sets `stem`, `stages` (each halves the map of the one before, or is the first) and `norm`, and
    makes its head in `make_head`.
    """

    stem: nn.Module
    stages: nn.Sequential
    head: nn.Module
    num_features: int
    """Channels of the last map."""
    head_hidden_size: int
    """Width of what the classifier reads."""

    def __init__(self, num_classes: int, in_chans: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        """widths, strides: channels of each stage's map, and input pixels per pixel of it."""
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = widths[-1]
        self.global_pool = "avg"
        self.grad_checkpointing = False
        pairs = enumerate(zip(widths, strides, strict=True))
        self.feature_info = [{"num_chs": w, "reduction": s, "module": f"stages.{i}"} for i, (w, s) in pairs]

    # What a family fills in

    def check_size(self, height: int, width: int) -> None:
        """Raise `BadInput` for images that the network cannot take; warn of those that suit it ill."""

    def make_head(self, num_classes: int) -> nn.Module:
        """What turns pooled features into logits; for 0 classes, into the features a classifier would read."""
        raise NotImplementedError

    def last(self, x: Tensor) -> Tensor:
        """What follows the stages before pooling: a norm, where the family has one."""
        return x

    def native(self) -> NativeNet:
        """See `headway.core.module_model.native_forward`."""
        return NativeNet(self)

    # timm's interface

    def forward_features(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, num_features, h / stride, w / stride)."""
        self._check(x)
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.last(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """pre_logits: give what the classifier would read."""
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of some stages: all, the last `indices` of them, or those listed (from the end where negative).

        norm: treat the last stage's map as `forward_features` does. Without `intermediates_only`: (features, maps).
        """
        if output_fmt != "NCHW":
            raise BadInput(f"output_fmt={output_fmt!r}", "maps are NCHW")
        self._check(x)
        wanted = taken(len(self.stages), indices)
        maps = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            if stop_early and index > max(wanted):
                break
            x = stage(x)
            if index in wanted:
                maps.append(self.last(x) if norm and index == len(self.stages) - 1 else x)
        return maps if intermediates_only else (self.last(x), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last one wanted, and the head; in place."""
        wanted = taken(len(self.stages), indices)
        cut = max(wanted) + 1 < len(self.stages)
        self.stages = self.stages[: max(wanted) + 1]
        if cut:
            self.num_features = self.head_hidden_size = int(self.feature_info[max(wanted)]["num_chs"])
        if cut or prune_head:
            self.num_classes, self.global_pool, self.head = 0, "", nn.Identity()
        return wanted

    def features_only(self, out_indices: int | Sequence[int] | None = None) -> Pyramid:
        """The network as a source of maps, sharing these weights."""
        return Pyramid(self, out_indices)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for other classes, in place; 0 leaves features. global_pool: `avg`, or empty for maps."""
        if global_pool is not None:
            if global_pool not in ("", "avg"):
                raise BadInput(f"global_pool={global_pool!r}", "choose 'avg', or '' for maps")
            self.global_pool = global_pool
        if not self.global_pool and num_classes:
            raise BadInput("a classifier needs pooled features", "set num_classes=0 or global_pool='avg'")
        self.num_classes = num_classes
        # The head reads pooled values: maps go out as they are.
        self.head = self.make_head(num_classes).train(self.training) if self.global_pool else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Accepted for `timm`'s sake; raises `BadInput` when asked for, since no stage is recomputed here."""
        if enable:
            raise BadInput("gradient checkpointing is not built in", "train with a smaller batch")

    def no_weight_decay(self) -> set[str]:
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: Any = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        return {"stem": r"^stem", "blocks": blocks}

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise BadInput(
                f"{type(self).__name__} was given {tuple(x.shape)}", f"images are (n, {self.in_chans}, height, width)"
            )
        if not torch.compiler.is_compiling():
            self.check_size(int(x.shape[2]), int(x.shape[3]))


class Pyramid(nn.Module):
    """(n, channels, h, w) -> the maps of some stages of a backbone, finest first."""

    def __init__(self, backbone: Backbone, out_indices: int | Sequence[int] | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_indices = taken(len(backbone.stages), out_indices)
        self.feature_info = [backbone.feature_info[index] for index in self.out_indices]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.backbone.forward_intermediates(x, self.out_indices, intermediates_only=True)
        return maps


def taken(stages: int, indices: int | Sequence[int] | None) -> list[int]:
    """Indices of the stages asked for; raises `BadInput` for one that is not there."""
    if indices is None:
        return list(range(stages))
    listed = list(range(stages - indices, stages)) if isinstance(indices, int) else list(indices)
    found = [index + stages if index < 0 and not isinstance(indices, int) else index for index in listed]
    if not found or min(found) < 0 or max(found) >= stages:
        raise BadInput(f"no stages {indices} among {stages}", f"give 1 to {stages}, or a list of 0 to {stages - 1}")
    return found


def check_partial(part: int, channels: int, what: str) -> None:
    """Raise `BadInput` unless 1 <= part <= channels."""
    if not 1 <= part <= channels:
        raise BadInput(f"{what}={part} of {channels} channels", f"choose 1 to {channels}")


class BackboneSettings(Settings):
    """What every family can be asked for, beside its variant."""

    num_classes: int = Field(1000, ge=0, description="classes of the head; 0: pooled features")
    image_size: int = Field(0, ge=0, le=4096, description="px; side of the square images; 0: the variant's own")
    weights: str = Field(
        "", description="path of an official checkpoint (.safetensors, .pth); empty: random weights, always the same"
    )


S = TypeVar("S", bound=BackboneSettings)


class BackboneFamily(ModelFamily[S]):
    """Builds a family's networks; each family adds its table of variants and the names in its checkpoints."""

    classifier: ClassVar[tuple[str, ...]] = ("head.",)
    """Beginnings of the names of the tensors that depend on the number of classes."""

    timm_classifier: ClassVar[str] = "head"
    """Path of the classifier's linear layer."""
    stages: ClassVar[int] = 4

    @abstractmethod
    def variant(self, name: str, **arguments: Any) -> Backbone:
        """A published variant by name, with fresh weights; arguments: those of the family's network."""

    @abstractmethod
    def network(self, settings: S) -> Backbone:
        """The network with fresh weights, for training."""

    @abstractmethod
    def image_size(self, settings: S) -> int:
        """The side of the images that the variant was published for, px."""

    @abstractmethod
    def ours(self, state: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
        """The tensors of an official checkpoint under the names of `network`."""

    def variants(self) -> tuple[str, ...]:
        """Names of the published variants."""
        return get_args(self.settings.model_fields["variant"].annotation)

    def is_folded(self, settings: S) -> bool:
        """Whether the settings ask for the inference form."""
        return bool(getattr(settings, "fold", False))

    def trained(self, settings: S) -> Backbone:
        """The network for training: fresh weights, always the same, or those of the checkpoint the settings name."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            network = self.network(settings)
        if settings.weights:
            self.load(network, settings.weights)
        return network

    def load(self, network: Backbone, path: str) -> None:
        """Fill a network from an official checkpoint; its head is left as it is where the classes differ in number."""
        state = self.ours(read_checkpoint(path), network)
        own = network.state_dict()
        heads = [name for name in state if name.startswith(self.classifier)]
        if any(name in own and own[name].shape[:1] != state[name].shape[:1] for name in heads):
            warnings.warn(
                f"{path} classifies another number of classes than {network.num_classes}: its head is left out",
                stacklevel=2,
            )
            state |= {name: value for name, value in own.items() if name.startswith(self.classifier)}
        elif not network.num_classes:
            state = {name: value for name, value in state.items() if name not in heads or name in own}
        fill(network, state, path)

    def build(self, settings: S) -> ModuleModel:
        """Raises `BadInput` for a checkpoint that does not fit and an image size that the network cannot take."""
        return self.model(self.trained(settings), settings)

    def model(self, network: Backbone, settings: S) -> ModuleModel:
        """A network of these settings, trained or not, as a MODEL."""
        size = settings.image_size or self.image_size(settings)
        network.check_size(size, size)
        made: nn.Module = fold(network) if self.is_folded(settings) else network
        shape = {**settings.model_dump(exclude={"weights"}), "image_size": size}
        slug = self.card.slug
        return ModuleModel(
            self.laid_out(made, settings),
            pattern(size),
            name=f"{slug}-{shape['variant']}",
            task="classification",
            origin=Origin("family", str(Step(slug, shape))),
            workload=partial(image_workload, size=size, pixels=IMAGENET),
        )

    def laid_out(self, network: nn.Module, settings: S) -> nn.Module:
        """The network with its weights in the order of memory that its layers run best in."""
        return network
