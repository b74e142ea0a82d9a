"""The families as models of `timm`: `import headway.vision.timm_models`, then `timm.create_model("patnet_t2")`.

Each variant is registered as `headway_FAMILY_VARIANT`, and as `FAMILY_VARIANT` too where timm has no network of that
name. Keyword arguments are those of timm: `num_classes`, `in_chans`, `features_only`, `out_indices`, and what the
family's network takes. There are no weights to fetch: `pretrained=True` is refused.
"""

from __future__ import annotations

import sys
from typing import Any

from headway.core.errors import BadInput
from headway.core.registry import systems
from headway.core.timm_library import timm_library
from headway.vision.backbones.base import Backbone, BackboneFamily
from headway.vision.data import IMAGENET

_PACKAGE = "headway.vision.backbones."

timm: Any = timm_library(__name__)


def register() -> list[str]:
    """Tell timm of every variant of every family; gives the names. What is registered already stays."""
    made = []
    for entry in systems().values():
        if not entry.module.startswith(_PACKAGE) or entry.card.kind != "model":
            continue
        family: Any = entry.load()
        for variant in family.variants():
            plain = f"{entry.card.slug}_{variant}"
            names = [f"headway_{plain}"]
            if not timm.is_model(plain):
                names.append(plain)
            made += [_register(name, family, variant) for name in names if not timm.is_model(name)]
    return made


def _register(name: str, family: BackboneFamily[Any], variant: str) -> str:
    size = family.image_size(family.settings.parse({"variant": variant}, family.card.slug))
    default = {
        "num_classes": 1000, "input_size": (3, size, size), "pool_size": None, "crop_pct": 0.9,
        "interpolation": "bicubic", "mean": IMAGENET.mean, "std": IMAGENET.std,
        "classifier": family.timm_classifier, "first_conv": None,
    }  # fmt: skip

    def make(**arguments: Any) -> Backbone:
        arguments.setdefault("num_classes", default["num_classes"])
        return family.variant(variant, **arguments)

    def entry(pretrained: bool = False, **arguments: Any) -> Any:
        if pretrained:
            raise BadInput(f"{name} has no weights to fetch", "build it with weights=PATH of an official checkpoint")
        stages = tuple(range(family.stages))
        return timm.models.build_model_with_cfg(
            make, name, False, feature_cfg={"out_indices": stages, "feature_cls": "getter"}, **arguments
        )

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    module: Any = sys.modules[__name__]
    module.default_cfgs[name] = timm.models.PretrainedCfg(**default).to_dict()
    setattr(module, name, entry)
    timm.models.register_model(entry)
    return name


default_cfgs: dict[str, Any] = {}
"""Where timm looks for what a network of this module expects of its input."""
REGISTERED = register()
