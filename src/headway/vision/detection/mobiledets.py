"""MobileDets (Xiong et al., CVPR 2021, arXiv:2004.14525): detectors searched per accelerator, dense layers among them.

Its networks hold dense convolutions where those cost less time than depthwise ones, although they multiply more.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from headway.core.card import Card
from headway.core.module_model import ModuleModel
from headway.core.module_origin import Origin
from headway.core.recipe import Step
from headway.core.system import ModelFamily, Settings
from headway.vision.data import image_workload, pattern
from headway.vision.detection.nets import NETS, SSDLite, check_size
from headway.vision.detection.scenes import SIGNED
from headway.vision.fold import fold

SYSTEM = Card(
    slug="mobiledets",
    title="MobileDets",
    paper="arXiv:2004.14525",
    kind="model",
    slot="network",
    summary="an object detector: SSDLite on backbones with regular convolutions where a machine runs those well",
    claim="+1.7 mAP over MobileNetV3 with SSDLite on COCO at equal CPU latency; +3.7 on EdgeTPU over MobileNetV2",
)


class MobiledetsSettings(Settings):
    target: Literal["cpu", "dsp", "edgetpu", "gpu"] = Field(
        "cpu", description="hardware that the network was searched for; table 2 of the paper"
    )
    image_size: int = Field(320, ge=33, le=4096, description="px; side of the square images; 320 in the paper")
    classes: int = Field(90, ge=1, le=100_000, description="classes of objects, without the background; 90 in COCO")
    fold: bool = Field(True, description="the form for inference: norms in the convolutions")


class Mobiledets(ModelFamily[MobiledetsSettings]):
    card = SYSTEM
    settings = MobiledetsSettings

    def network(self, settings: MobiledetsSettings) -> SSDLite:
        """The detector for training, with fresh weights, always the same."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return SSDLite(NETS[settings.target], settings.classes)

    def build(self, settings: MobiledetsSettings) -> ModuleModel:
        return self.model(self.network(settings), settings)

    def model(self, network: SSDLite, settings: MobiledetsSettings) -> ModuleModel:
        """A network of these settings, trained or not, as a MODEL: images in [-1, 1] to codes and logits of boxes."""
        size = settings.image_size
        check_size(size, size)
        made: nn.Module = fold(network) if settings.fold else network
        return ModuleModel(
            made,
            pattern(size),
            name=f"{self.card.slug}-{settings.target}",
            origin=Origin("family", str(Step(self.card.slug, settings.model_dump()))),
            workload=partial(image_workload, size=size, pixels=SIGNED, task="module"),
        )
