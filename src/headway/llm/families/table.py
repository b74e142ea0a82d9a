"""The families there are, and the one that a configuration or a GGUF header belongs to."""

from __future__ import annotations

from headway.core.errors import BadInput
from headway.llm.families import gemma3, llama, mistral, qwen2, qwen3
from headway.llm.families.config import Config
from headway.llm.families.family import Family
from headway.llm.gguf.header import Header

FAMILIES: tuple[Family, ...] = (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY, gemma3.FAMILY)


def family_named(name: str) -> Family:
    for family in FAMILIES:
        if family.name == name:
            return family
    raise BadInput(f"no model family {name!r}", f"supported: {', '.join(family.name for family in FAMILIES)}")


def family_of_config(config: Config) -> Family:
    """Raises `BadInput` naming the supported model types."""
    model_type = config.text("model_type", "")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise BadInput(f"{config.source}: the architecture {model_type[:80]!r} is unknown", f"supported: {known}")


def family_of_gguf(header: Header) -> Family:
    """Raises `BadInput` naming the supported architectures."""
    name = header.text("general.architecture")
    for family in FAMILIES:
        if name in family.gguf_names:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.gguf_names)
    raise BadInput(f"{header.path}: the architecture {name[:80]!r} is unknown", f"supported: {known}")
