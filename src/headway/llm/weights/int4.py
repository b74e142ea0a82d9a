"""`int4`: the slot's plain 4-bit reference: nibbles with a scale and a minimum per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from headway.core.card import Card
from headway.core.model import Model, Site
from headway.core.system import WeightSettings
from headway.core.target import Target
from headway.core.weight import Weight
from headway.llm.weights.grouped import Int4Weight, group_count
from headway.llm.weights.quantizers import copied, rtn
from headway.llm.weights.quantizers_gptq import gptq
from headway.llm.weights.transform import Matrix, WeightTransform

SYSTEM = Card(
    slug="int4",
    title="4-bit group quantisation",
    paper="plain reference of the slot; rounding with error feedback as in GPTQ, arXiv 2210.17323",
    kind="transform",
    slot="weights",
    summary="4-bit weights with a scale and a minimum per group, dequantised in registers",
    claim="an eighth of float32",
    needs=("static_weights",),
    breaks=("bitwise_equal",),
    reference=True,
)


class Int4Settings(WeightSettings):
    """Group sizes are multiples of 16."""

    group_size: int = Field(64, ge=16, le=1024, description="columns that share a scale and a minimum; Q4_1 has 32")
    quantizer: Literal["gptq", "rtn"] = Field("gptq", description="gptq needs calibration inputs, rtn none")

    @field_validator("group_size")
    @classmethod
    def _whole(cls, value: int) -> int:
        if value % 16:
            raise ValueError("group_size must be a multiple of 16")
        return value


class Int4(WeightTransform[Int4Settings]):
    """The same tile as GGUF's Q4_1, any group size."""

    card = SYSTEM
    settings = Int4Settings

    def calibrates(self, settings: Int4Settings) -> bool:
        return settings.quantizer == "gptq"

    def make(self, matrix: Matrix, settings: Int4Settings) -> Weight:
        found = copied(matrix.held, 4, settings.group_size)
        if found is None and matrix.hessian is not None:
            found = gptq(matrix.value, matrix.hessian, 4, settings.group_size, threads=1)
        if found is None:
            found = rtn(matrix.value, 4, settings.group_size)
        return Int4Weight(found.codes, found.scale, found.minimum, group_size=settings.group_size)

    def stored(self, site: Site, settings: Int4Settings) -> tuple[str, float]:
        grid = 4.0 * site.out_features * group_count(site.in_features, settings.group_size)
        return "int4", site.out_features * ((site.in_features + 1) // 2) + grid

    def options(self, model: Model, target: Target) -> Sequence[Mapping[str, Any]]:
        return ({"group_size": 64},)
