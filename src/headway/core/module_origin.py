"""Where a module comes from, so that a saved one can be built again.

Written `packaged:NAME`, `family:SYSTEM(SETTINGS)`, `timm:NAME`, `python:MODULE:FUNCTION`, or `module` for one its user
brings.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from headway.core.errors import BadInput, Lacking
from headway.core.packaged import PACKAGED
from headway.core.recipe_text import NAME, read_line
from headway.core.registry import system, systems
from headway.core.timm_library import timm_library
from headway.core.workload import see_here

if TYPE_CHECKING:
    from torch import nn

    from headway.core.module_model import ModuleModel
    from headway.core.system import ModelFamily

OriginKind = Literal["packaged", "family", "timm", "python", "module"]


NATIVE: dict[str, str] = {"timm": "headway.vision.runtime.net:NativeNet"}
"""Origin -> the native runtime of modules that bring none of their own; called with the module."""


@dataclass(frozen=True)
class Origin:
    """`module` stands for a network that the caller built and must bring again."""

    kind: OriginKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @classmethod
    def parse(cls, text: str) -> Origin:
        """`packaged:minilm-l6`, `timm:resnet18`, `python:my.models:small`, `module`; anything else is `BadInput`."""
        kind, _, name = text.partition(":")
        module, _, function = name.partition(":")
        good = {
            "packaged": name in PACKAGED,
            "family": kind == "family" and is_family(name),
            "timm": name.replace("_", "").replace(".", "").isalnum(),
            "python": all(part.isidentifier() for part in (*module.split("."), function)),
            "module": text == "module",
        }
        if not good.get(kind, False):
            raise BadInput(
                f"{text!r} does not say how a module is built",
                f"write packaged:NAME ({', '.join(PACKAGED)}), family:SYSTEM(...), timm:NAME or python:MODULE:FUNCTION",
            )
        return cls(cast(OriginKind, kind), name)


def packaged_folder(model: str, package: str) -> Path:
    """The folder of an installed package that carries a model, found without importing it.

    Raises `Lacking` with the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Lacking(f"{model}: the Python package {package!r} is not installed", f"run: {PACKAGED[model].install}")
    return Path(next(iter(spec.submodule_search_locations)))


def empty_packaged(name: str) -> ModuleModel:
    """The packaged model with untrained weights, for which its package need not be installed."""
    if name not in PACKAGED:
        raise BadInput(f"no packaged model {name!r}", f"packaged models are: {', '.join(PACKAGED)}")
    module, _, function = PACKAGED[name].loader.partition(":")
    return cast("ModuleModel", getattr(importlib.import_module(module), function)(pretrained=False))


def is_family(text: str) -> bool:
    """Whether a text begins with the name of a system of the kind `model`: `shvit`, `shvit(variant=s1)`."""
    head = NAME.match(text)
    known = systems().get(head.group()) if head else None
    return known is not None and known.card.kind == "model" and text[len(known.card.slug) :].strip()[:1] in ("", "(")


def build_family(text: str) -> ModuleModel:
    """The network that a system of the kind `model` builds with the settings given; `BadInput` for any other text."""
    steps = read_line(text)
    if len(steps) != 1 or not is_family(steps[0][0]):
        raise BadInput(f"{text!r} does not name one network", "write e.g. shvit(variant=s1); recipes go to --recipe")
    slug, values = steps[0]
    family = cast("ModelFamily[Any]", system(slug))
    return cast("ModuleModel", family.build(family.settings.parse(values, slug)))


def build_timm(name: str) -> nn.Module:
    """A network of the `timm` library with untrained weights; nothing is fetched."""
    timm = timm_library(f"timm:{name}")
    if name not in timm.list_models():
        near = get_close_matches(name, timm.list_models(), n=3)
        mend = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise BadInput(f"timm has no model {name!r}", mend)
    return cast("nn.Module", timm.create_model(name, pretrained=False))


def build_python(name: str) -> Any:
    """Run the user's own `MODULE:FUNCTION` without arguments; whoever calls this has been asked to."""
    module, _, function = name.partition(":")
    see_here()
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"python:{name}: {error}", "check the module's name, its function and PYTHONPATH") from error
    return made()
