"""Headway: bring a model, a machine and a budget; leave with what meets it, and the measurement that proves it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headway.core.version import __version__

if TYPE_CHECKING:
    from headway.optimize.api import apply, load, optimize, prove

__all__ = ["__version__", "apply", "load", "optimize", "prove"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("headway.optimize.api"), name)
    raise AttributeError(f"module 'headway' has no attribute {name!r}")
