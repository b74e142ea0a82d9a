"""`kv-int4`: the slot's plain 4-bit reference: values, or keys and values, in int4, rotated, attended in integers.

A value (of one token and head) is levels -15, -13 .. 15 times one float32 scale, its largest magnitude over 15. Before
that it goes through a normalised Walsh-Hadamard transform, of as many dimensions at a time as the largest power of two
that divides head_dim, so that no dimension stands out (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456); what a head
attends to is turned back once. Keys are those of `kv-int8`, or with `keys=4` as the values: queries then go through the
same transform, which leaves every score as it was. Queries and attention weights are rounded to 8 bits as for
`kv-int8` (kernels/cpu/attention_codes.h).

Keys decide the quality, which is why they keep 8 bits unless asked. KL to exact keys and values on 1,024 tokens of
held-out text: SmolLM2-135M 0.065 with both in 4 bits (0.31 without the rotation), of which values make 0.006. Gemma 3
270M, with heads of 256, 0.21 (2.8 without the rotation). A scale for every 32 dimensions would make them 0.058 and
0.115.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from headway.core.card import Card
from headway.core.model import Model
from headway.core.system import Settings
from headway.core.target import Target
from headway.llm.kv.base import CodedKV
from headway.llm.runtime import KVType

SYSTEM = Card(
    slug="kv-int4",
    title="4-bit values, and keys if asked",
    paper="plain reference of the slot; absmax rounding of Hadamard-rotated vectors (arXiv 2404.00456)",
    kind="policy",
    slot="kv",
    summary="values (and keys, if asked) in int4, rotated, attended in integers",
    claim="three quarters of the memory of int8 keys and values (or little more than half), faster at length",
    needs=("kv_cache",),
    breaks=("bitwise_equal",),
    reference=True,
)


class KVInt4Settings(Settings):
    """What is kept in 4 bits."""

    keys: Literal[4, 8] = Field(
        8, description="bits of a key; of 4 they are half the bytes, and cost nearly all that is lost"
    )


class KVInt4(CodedKV[KVInt4Settings]):
    """A quarter of the bytes of every page, and its scales."""

    card = SYSTEM
    settings = KVInt4Settings

    def store(self, settings: KVInt4Settings) -> KVType:
        return "int4" if settings.keys == 4 else "k8v4"

    def options(self, model: Model, target: Target) -> Sequence[Mapping[str, Any]]:
        return ({}, {"keys": 4})
