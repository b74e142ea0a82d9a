"""`kv-int8`: the slot's plain 8-bit reference: keys and values in int8, scored in integers.

One float32 scale per key and per value vector; queries and attention weights are rounded to 8 bits as they are used
(kernels/cpu/attention_kernel.h), so a page is read at half the bytes of float16 and multiplied at four times the rate.
"""

from __future__ import annotations

from headway.core.card import Card
from headway.core.model import Model
from headway.core.system import YES, Context, Settings, Verdict, no
from headway.core.target import Target
from headway.llm.kv.base import KVSystem, language

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

MOST_DIM = 1024
"""Dimensions of a head that the kernel takes."""


class KVInt8Settings(Settings):
    """Nothing to set."""


class KVInt8(KVSystem[KVInt8Settings]):
    """Half the bytes of every page."""

    card = SYSTEM
    settings = KVInt8Settings

    def applies(self, model: Model, target: Target) -> Verdict:
        found = super().applies(model, target)
        if not found:
            return found
        dim = language(model).architecture.head_dim
        return YES if dim <= MOST_DIM else no(f"its heads have {dim} dimensions, the kernel takes {MOST_DIM}")

    def plug(self, model: Model, settings: KVInt8Settings, context: Context) -> Model:
        return language(model).with_kv("int8")
