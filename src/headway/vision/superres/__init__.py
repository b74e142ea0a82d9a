"""Super-resolution: networks that upscale pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.vision.superres.pictures import upscale

__all__ = ["upscale"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from headway.vision.superres.pictures import upscale

        return upscale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
