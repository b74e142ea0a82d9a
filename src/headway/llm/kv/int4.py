"""`kv-int4`: the slot's plain 4-bit reference: keys and values in int4, rotated, scored in integers.

A key or value vector (of one token and head) is levels -15, -13 .. 15 times one float32 scale, its largest magnitude
over 15. Before that it goes through a normalised Walsh-Hadamard transform, of as many dimensions at a time as the
largest power of two that divides head_dim, so that no dimension stands out (QuaRot, Ashkboos et al. 2024, arXiv
2404.00456). Queries go through the same transform, which leaves every score as it was, and what a head attends to is
turned back once. Queries and attention weights are rounded to 8 bits as for `kv-int8`
(kernels/cpu/attention_kernel.h).

Keys decide the quality. KL to exact keys and values on 1,024 tokens of held-out text: SmolLM2-135M 0.065 (0.31 without
the rotation), of which values make 0.006. Gemma 3 270M, with heads of 256, 0.21 (2.8 without the rotation). A scale for
every 32 dimensions would make them 0.058 and 0.115.
"""

from __future__ import annotations

from headway.core.card import Card
from headway.core.system import Settings
from headway.llm.kv.base import CodedKV

SYSTEM = Card(
    slug="kv-int4",
    title="4-bit keys and values",
    paper="plain reference of the slot; absmax rounding of Hadamard-rotated vectors (arXiv 2404.00456)",
    kind="policy",
    slot="kv",
    summary="keys and values in int4, rotated, attended in integers",
    claim="little more than half the memory of int8 keys and values, and faster over long contexts",
    needs=("kv_cache",),
    breaks=("bitwise_equal",),
    reference=True,
)


class KVInt4Settings(Settings):
    """Nothing to set."""


class KVInt4(CodedKV[KVInt4Settings]):
    """A quarter of the bytes of every page, and its scales."""

    card = SYSTEM
    settings = KVInt4Settings
    store = "int4"
