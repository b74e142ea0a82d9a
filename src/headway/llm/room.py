"""Whether there is room for a model, asked before its weights are packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headway.core.errors import Lacking
from headway.core.units import show
from headway.core.weight import Weight
from headway.hardware.machine import room_bytes
from headway.hardware.predict import LanguageLoad, LanguageShape, SiteLoad, memory_bytes
from headway.llm.families.base import Architecture

KV_PAGE = 64
"""Tokens of a page of the native store."""


def language_shape(arch: Architecture) -> LanguageShape:
    """What of an architecture decides its cost."""
    return LanguageShape(
        layers=len(arch.layers),
        width=arch.d_model,
        ffn=arch.ffn,
        heads=arch.heads,
        kv_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        vocabulary=arch.vocab,
        windows=tuple(layer.window for layer in arch.layers),
        vector_bytes=4 * sum(arch.vectors.values()),
    )


def check_room(name: str, arch: Architecture, weights: Mapping[str, Weight], root: str | Path = "/") -> None:
    """Raise `Lacking` when what `weights` and one page of tokens still have to take is more than there is.

    A weight that was packed before takes nothing. `root`: where /proc and /sys are read.
    """
    left = [site for site in arch.sites if not getattr(weights[site.name], "packed", False)]
    sites = [
        SiteLoad(site.name, site.out_features, site.in_features, weights[site.name].nbytes, weights[site.name].form)
        for site in left
    ]
    load = LanguageLoad(prompt_tokens=KV_PAGE, output_tokens=0, kv="f16")
    needs, room = sum(memory_bytes(language_shape(arch), sites, load).values()), room_bytes(root)
    if needs > room:
        raise Lacking(
            f"{name} needs {show(needs, 'B')} of memory, {show(room, 'B')} is left",
            "free memory, raise the limit or use a smaller recipe",
        )
