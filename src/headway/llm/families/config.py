"""`Config`: typed, bounded access to a Hugging Face config.json (data only: nothing in it is ever run)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from headway.core.errors import BadInput
from headway.llm.families.base import MAX_LAYERS, Layer, Rope

CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
"""Keys that other loaders run code for; reported, never followed."""

ROPE_TYPES = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


class Config:
    """A parsed config.json; `source` is what errors name."""

    def __init__(self, values: Mapping[str, Any], source: str = "config.json") -> None:
        self.values = values
        self.source = source

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def wrong(self, key: str, what: str, mend: str = "correct it or export the model again") -> BadInput:
        shown = repr(self.values.get(key))
        return BadInput(f"{self.source}: {key}={shown[:80]} {what}", mend)

    def over(self, defaults: Mapping[str, Any]) -> Config:
        """The same with `defaults` for the keys that are absent: what a family's published configurations leave out."""
        return Config({**defaults, **self.values}, self.source)

    def part(self, key: str) -> Config:
        """A nested object; an absent one is empty."""
        value = self.values.get(key)
        if value is None:
            return Config({}, f"{self.source}: {key}")
        if not isinstance(value, Mapping):
            raise self.wrong(key, "is not an object")
        return Config(value, f"{self.source}: {key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number in 0..2^31; `default`, where given, stands for an absent or null key."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise self.wrong(key, "is not a whole number from 0 to 2^31 - 1")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "is not a finite number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "is not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "is not a string")
        return value

    def texts(self, key: str, limit: int = MAX_LAYERS) -> tuple[str, ...]:
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) > limit or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, f"is not a list of at most {limit} strings")
        return tuple(value)

    def ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; absent = none."""
        value = self.values.get(key)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        if len(listed) > 1024 or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in listed):
            raise self.wrong(key, "is not a token id or a list of them")
        return tuple(listed)

    def refuse(self, key: str, *allowed: Any) -> None:
        """Raise unless `key` is absent or has one of the `allowed` values: what we would otherwise ignore."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise self.wrong(key, "is not supported", f"supported: {', '.join(map(str, allowed))}")

    # What several families share

    def layer_count(self) -> int:
        count = self.integer("num_hidden_layers")
        if not 1 <= count <= MAX_LAYERS:
            raise self.wrong("num_hidden_layers", f"is not in 1..{MAX_LAYERS}")
        return count

    def rope(self, layer_type: str = "full_attention", default_base: float = 10000.0) -> Rope:
        """The rotary embedding of layers of one type, from any of the three ways configurations say it."""
        if "rope_parameters" in self:
            settings = self.part("rope_parameters")
            if any(isinstance(value, Mapping) for value in settings.values.values()):
                settings = settings.part(layer_type)
        else:
            settings = self.part("rope_scaling")
        base = settings.real("rope_theta", self.real("rope_theta", default_base))
        kind = settings.text("rope_type", settings.text("type", "default"))
        if kind not in ROPE_TYPES:
            raise settings.wrong("rope_type", "is not supported", f"supported: {', '.join(ROPE_TYPES)}")
        settings.refuse("partial_rotary_factor", 1, 1.0)
        self.refuse("partial_rotary_factor", 1, 1.0)
        if kind == "default":
            return Rope(base)
        factor = settings.real("factor")
        if kind == "linear":
            return Rope(base, "linear", factor)
        original = settings.integer("original_max_position_embeddings", self.integer("max_position_embeddings"))
        if kind == "llama3":
            return Rope(
                base,
                "llama3",
                factor,
                low_freq_factor=settings.real("low_freq_factor"),
                high_freq_factor=settings.real("high_freq_factor"),
                original_context=original,
            )
        settings.refuse("mscale")
        settings.refuse("truncate", True)
        return Rope(
            base,
            "yarn",
            factor,
            original_context=original,
            beta_fast=settings.real("beta_fast", 32.0),
            beta_slow=settings.real("beta_slow", 1.0),
            attention_factor=settings.real("attention_factor", yarn_attention_factor(factor)),
        )

    def layers(self, types: tuple[str, ...], ropes: Mapping[str, Rope], window: int) -> tuple[Layer, ...]:
        """One `Layer` for each type, `sliding_attention` with the window."""
        if len(types) != self.layer_count():
            raise self.wrong("layer_types", f"has {len(types)} entries for {self.layer_count()} layers")
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise self.wrong("layer_types", f"holds {kind!r}", "supported: full_attention, sliding_attention")
        if "sliding_attention" in types and window < 1:
            raise self.wrong("sliding_window", "is needed by the sliding layers")
        return tuple(Layer(ropes[kind], window if kind == "sliding_attention" else 0) for kind in types)

    def bos(self) -> int | None:
        """The first token of a text, where the configuration names one."""
        return next(iter(self.ids("bos_token_id")), None)


def yarn_attention_factor(factor: float) -> float:
    """YaRN's temperature on cosine and sine (Peng et al. 2023, section 3.4)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0
