"""`int8`: the slot's plain 8-bit reference: signed bytes with one scale per group, rounded to nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from headway.core.card import Card
from headway.core.model import Model, Site
from headway.core.system import WeightSettings
from headway.core.target import Target
from headway.core.weight import Weight
from headway.llm.weights.grouped import Int8Weight, group_count
from headway.llm.weights.quantizers import checked, grouped
from headway.llm.weights.transform import Matrix, WeightTransform

SYSTEM = Card(
    slug="int8",
    title="8-bit group quantisation",
    paper="plain reference of the slot; symmetric absmax rounding",
    kind="transform",
    slot="weights",
    summary="8-bit weights with one scale per group, multiplied in integers",
    claim="nearly lossless at a quarter of float32",
    needs=("static_weights",),
    breaks=("bitwise_equal",),
    reference=True,
)


class Int8Settings(WeightSettings):
    """Group sizes are multiples of 16; smaller groups cost bytes and save error."""

    group_size: int = Field(64, ge=16, le=1024, description="columns that share a scale; 32 as in Q8_0, 64 here")

    @field_validator("group_size")
    @classmethod
    def _whole(cls, value: int) -> int:
        if value % 16:
            raise ValueError("group_size must be a multiple of 16")
        return value


class Int8(WeightTransform[Int8Settings]):
    """Half of the values of `float16`, exact integer kernels: what a cautious user would pick."""

    card = SYSTEM
    settings = Int8Settings

    def make(self, matrix: Matrix, settings: Int8Settings) -> Weight:
        w = checked(matrix.value, 8, settings.group_size)
        blocks = grouped(w, settings.group_size)
        scale = np.abs(blocks).max(axis=2) / np.float32(127)
        with np.errstate(over="ignore"):  # kept as float32 then
            half = scale.astype(np.float16)
        fits = (half >= np.finfo(np.float16).smallest_normal) | (scale == 0)
        stored = half if fits.all() and np.isfinite(half).all() else scale.astype(np.float32)
        safe = np.where(stored == 0, 1, stored).astype(np.float32)
        codes = np.rint(blocks / safe[:, :, None]).clip(-127, 127).astype(np.int8).reshape(len(w), -1)
        return Int8Weight(np.ascontiguousarray(codes[:, : w.shape[1]]), stored, group_size=settings.group_size)

    def stored(self, site: Site, settings: Int8Settings) -> tuple[str, float]:
        scales = 2.0 * site.out_features * group_count(site.in_features, settings.group_size)
        return "int8", site.parameters + scales

    def options(self, model: Model, target: Target) -> Sequence[Mapping[str, Any]]:
        return ({"group_size": 64},)
