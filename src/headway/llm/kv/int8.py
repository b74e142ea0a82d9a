"""`kv-int8`: the slot's plain 8-bit reference: keys and values in int8, scored in integers.

One float32 scale per key and per value vector; queries and attention weights are rounded to 8 bits as they are used
(kernels/cpu/attention_kernel.h), so a page is read at half the bytes of float16 and multiplied at four times the rate.
"""

from __future__ import annotations

from headway.core.card import Card
from headway.core.system import Settings
from headway.llm.kv.base import CodedKV
from headway.llm.runtime import KVType

SYSTEM = Card(
    slug="kv-int8",
    title="8-bit keys and values",
    paper="plain reference of the slot; symmetric absmax rounding per token and head",
    kind="policy",
    slot="kv",
    summary="keys and values in int8, attended in integers",
    claim="half the memory of float16 keys and values, and faster over long contexts",
    needs=("kv_cache",),
    breaks=("bitwise_equal",),
    reference=True,
)


class KVInt8Settings(Settings):
    """Nothing to set."""


class KVInt8(CodedKV[KVInt8Settings]):
    """Half the bytes of every page."""

    card = SYSTEM
    settings = KVInt8Settings

    def store(self, settings: KVInt8Settings) -> KVType:
        return "int8"
