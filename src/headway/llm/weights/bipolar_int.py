"""`bipolar-int`: weights and activations of any widths from 1 to 8 bits, every bit worth +-1.

Products are integers: counted from XORed bit planes, or from codes recovered to bytes, by what is faster here
(kernels/cpu/bipolar.h). Outliers are spread before rounding: weights are turned by a block Hadamard matrix, activations
too as they come, and 64 channels share a scale. This module says how one matrix becomes a `BipolarWeight`.

Where the papers leave it open: one tile has 16 rows with lanes as rows, so that no sum crosses lanes and the runtime's
threads share tiles as for every weight (the paper's tiles are unpublished); the quantiser is symmetric with a scale per
group (the paper's is likely one per channel: `group_size` 0, `act_group` 0, `rotate` 0); activations are quantised per
token at run time, never statically; and `act_bits` 16 keeps them in float, with the weight's planes in the form whose
kernel looks sums up, which has at most 4 planes and is not turned.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from headway.core.card import Card
from headway.core.model import Model, Site
from headway.core.system import Context, WeightSettings
from headway.core.target import Target
from headway.core.weight import F32, Weight
from headway.llm.weights.base import finite
from headway.llm.weights.bipolar import BipolarWeight
from headway.llm.weights.bitplanes import BitPlanes, to_planes
from headway.llm.weights.grouped import group_count
from headway.llm.weights.hadamard import turned_moment, turned_weight
from headway.llm.weights.quantizers import rtn
from headway.llm.weights.quantizers_bipolar import bipolar
from headway.llm.weights.quantizers_gptq import gptq
from headway.llm.weights.transform import Matrix, WeightTransform

SYSTEM = Card(
    slug="bipolar-int",
    title="Bipolar-INT",
    paper="Efficient Arbitrary Precision Acceleration for Large Language Models on GPU Tensor Cores, ASP-DAC 2025 "
    "(arXiv 2409.17870); APT-LLM, IEEE TCAD (arXiv 2508.19087)",
    kind="transform",
    slot="weights",
    summary="weights and activations of 1 to 8 bits worth +-1, multiplied as integers of any pair of widths",
    claim="up to 2.4x over CUTLASS in matmul and 6.7x LLM inference; 3.99x over FP16 on RTX 3090 (APT-LLM)",
    needs=("static_weights",),
    breaks=("bitwise_equal",),
)

DAMPING = 0.01
"""Share of H's mean diagonal that is added to it. Help topics, W4A8 and W4A4: perplexity ratios 1.072 and 1.208, with
0.06 1.063 and 1.222: within one another's intervals of +-0.015 and +-0.027.
"""
FLOAT_ACTIVATIONS = 16


class BipolarSettings(WeightSettings):
    """Bits per weight: weight_bits + 16 / group_size, or + 48 / group_size with `from_signed`."""

    weight_bits: int = Field(4, ge=1, le=8, description="planes per weight; the paper's n")
    act_bits: int = Field(
        8, ge=1, le=16, description="planes per activation, 1 to 8; the paper's m; 16 = activations stay in float"
    )
    group_size: int = Field(
        128, ge=0, le=32768, multiple_of=32, description="columns of a weight that share a scale; 0 = the row"
    )
    act_group: int = Field(
        64, ge=0, le=32768, multiple_of=32, description="channels of an activation that share a scale; 0 = the token"
    )
    rotate: Literal[0, 16, 32, 64, 128, 256] = Field(
        64, description="columns of the Hadamard blocks that weights and activations are turned by; 0 = none"
    )
    quantizer: Literal["gptq", "rtn"] = Field(
        "gptq", description="gptq: error feedback on calibration inputs; rtn: nearest level, no calibration"
    )
    clip: Literal["mse", "max"] = Field(
        "mse", description="scale of least squared error (activations: of 2 to 4 bits, best of six), or of the largest"
    )
    convert: Literal["native", "from_signed"] = Field(
        "native", description="native: odd levels, no offset; from_signed: an integer grid with its zero, converted"
    )
    per_layer_bits: dict[str, int] = Field(
        default_factory=dict, description="site pattern -> weight bits, in place of weight_bits; the first that fits"
    )

    @field_validator("act_bits")
    @classmethod
    def _bits_or_float(cls, value: int) -> int:
        if 8 < value < FLOAT_ACTIVATIONS:
            raise ValueError("act_bits must be 1 to 8, or 16 for float activations")
        return value

    @field_validator("per_layer_bits")
    @classmethod
    def _widths(cls, value: dict[str, int]) -> dict[str, int]:
        for pattern, bits in value.items():
            if not 1 <= bits <= 8:
                raise ValueError(f"{pattern!r} has {bits} bits, not 1 to 8")
        return value

    @model_validator(mode="after")
    def _planes_looked_up(self) -> BipolarSettings:
        most = max([self.weight_bits, *self.per_layer_bits.values()])
        if self.act_bits == FLOAT_ACTIVATIONS and most > 4:
            raise ValueError(f"act_bits=16 takes weights of 1 to 4 bits, not {most}")
        return self

    def bits_of(self, site: Site) -> int:
        for pattern, bits in self.per_layer_bits.items():
            if site.matches((pattern,)):
                return bits
        return self.weight_bits


class BipolarInt(WeightTransform[BipolarSettings]):
    """Linear and 1x1-convolution layers of any module; embeddings and heads stay as they are unless named by `only`."""

    card = SYSTEM
    settings = BipolarSettings
    version = 3

    def calibrates(self, settings: BipolarSettings) -> bool:
        return settings.quantizer != "rtn"

    def weights(
        self, model: Model, settings: BipolarSettings, context: Context, sites: Sequence[Site]
    ) -> dict[str, Weight]:
        made: dict[str, Weight] = {}
        for bits in sorted({settings.bits_of(site) for site in sites}):
            own = settings.model_copy(update={"weight_bits": bits, "per_layer_bits": {}})
            mine = [site for site in sites if settings.bits_of(site) == bits]
            made |= super().weights(model, own, context, mine)
        return made

    def make(self, matrix: Matrix, settings: BipolarSettings) -> Weight:
        w, bits, group = matrix.value, settings.weight_bits, settings.group_size
        finite(w, f"the weight of {matrix.site.name}")
        if settings.act_bits == FLOAT_ACTIVATIONS:
            return _looked_up(w, bits, group, matrix.hessian, settings)
        how = {
            "group_size": group,
            "act_bits": settings.act_bits,
            "act_group": settings.act_group,
            "rotate": settings.rotate,
            "clip": int(settings.clip == "mse"),
        }
        h = None if matrix.hessian is None else _turned(matrix.hessian, settings.rotate)
        w = turned_weight(w, settings.rotate)
        if settings.convert == "native":
            found = bipolar(w, bits, group, hessian=h, clip=settings.clip == "mse", damping=DAMPING)
            return BipolarWeight.from_codes(found.codes, found.scale, None, bits=bits, **how)
        columns = group or w.shape[1]
        grid = "mse" if settings.clip == "mse" else "zero"
        signed = (
            rtn(w, bits, columns, grid=grid)  # type: ignore[arg-type]
            if h is None
            else gptq(
                w, h, bits, columns, grid="weighted" if settings.clip == "mse" else "range", damping=DAMPING, threads=1
            )
        )
        return BipolarWeight.from_affine(signed.codes, signed.scale, signed.minimum, bits=bits, **how)

    def stored(self, site: Site, settings: BipolarSettings) -> tuple[str, float]:
        bits = settings.bits_of(site)
        planes = bits * ((site.in_features + 7) // 8)
        groups = group_count(site.in_features, settings.group_size or site.in_features)
        if settings.act_bits == FLOAT_ACTIVATIONS:
            return BitPlanes.form, site.out_features * (planes + 8.0 * groups)
        floats = 2.0 if settings.convert == "native" else 8.0
        return BipolarWeight.form, site.out_features * (planes + floats * groups)

    def options(self, model: Model, target: Target) -> Sequence[Mapping[str, Any]]:
        """Widths between 4 and 8 bits, where the slot's other systems have none: each costs the search a pass."""
        return ({"weight_bits": 6}, {"weight_bits": 5})


_turns: dict[tuple[int, int], tuple[weakref.ref[F32], F32]] = {}


def _turned(hessian: F32, rotate: int) -> F32:
    """H turned, one array for all sites that share H, so that they share its factor too."""
    if not rotate:
        return hessian
    key = (id(hessian), rotate)
    known = _turns.get(key)
    if known is not None and known[0]() is hessian:
        return known[1]
    made = turned_moment(hessian, rotate)
    _turns[key] = (weakref.ref(hessian, lambda _: _turns.pop(key, None)), made)
    return made


def _looked_up(w: F32, bits: int, group: int, hessian: F32 | None, settings: BipolarSettings) -> Weight:
    """The same levels for float activations: scale V = 2 scale u - (2^bits - 1) scale, in the form with look-ups."""
    found = bipolar(w, bits, group, hessian=hessian, clip=settings.clip == "mse", damping=DAMPING)
    step = found.scale.astype(np.float32)
    whole = -(-w.shape[1] // 4) * 4
    return BitPlanes(
        to_planes(found.codes, bits),
        2 * step,
        -np.float32(2**bits - 1) * step,
        in_features=w.shape[1],
        group_size=group or whole,
    )
