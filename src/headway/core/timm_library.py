"""`timm`, imported without torchvision.

timm asks torchvision for image transforms, data sets and one frozen norm, of which its networks need nothing. But
torchvision's wheels fit one build of torch only, and beside another (a CPU build) their import fails, in timm and in
everything else that looks for them. So where torchvision does not import, names stand in for its own while timm does.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from headway.core.errors import Lacking


def timm_library(what: str = "this") -> Any:
    """The module `timm`; raises `Lacking` naming the package that is missing and the command that brings it."""
    try:
        if "timm" in sys.modules or _imports("torchvision"):
            return importlib.import_module("timm")
        with _torchvision_stood_in_for():
            return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name == "timm":
            mend = "run: pip install --no-deps timm"
            raise Lacking(f"{what} needs the Python package 'timm', which is not installed", mend) from None
        mend = f"install it in a version that fits this torch, e.g. pip install --no-deps {error.name}"
        raise Lacking(f"{what}: timm itself needs {error.name!r}, which is not installed", mend) from None


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError):
        return False
    return True


class _Name(type):
    """A class that has every attribute: `InterpolationMode.BICUBIC` is the text `BICUBIC`."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(ModuleType):
    """A module that has a class, never to be made, for every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(name, (), {})
        setattr(self, name, made)
        return made


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        # timm does without torchvision's extractor of features where it is not there.
        if name.partition(".")[0] != "torchvision" or name.startswith("torchvision.models"):
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def _torchvision_stood_in_for() -> Iterator[None]:
    """Nothing of it is left afterwards but what timm's own modules refer to."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
