"""The main path: load, measure, propose, predict, apply, measure, keep, prove, save.

`headway.optimize(model, budget=...)` is a function to its users and this package to the import system: the module
itself is made callable, since both have the one name that fits.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `headway.optimize.api.optimize`."""
        from headway.optimize.api import optimize

        return optimize(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
