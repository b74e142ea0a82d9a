"""`Family`: how one family's checkpoints name their tensors and describe their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headway.llm.families.base import Architecture
from headway.llm.families.config import Config
from headway.llm.gguf.header import Header

Names = dict[str, str]
"""Our name (`<site>.weight` or a key of `Architecture.vectors`) -> the name in the file."""


@dataclass(frozen=True)
class Family:
    """One family of decoder-only models; `families.table` lists them all."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` of Hugging Face configurations."""
    gguf_names: tuple[str, ...]
    """`general.architecture` of GGUF files."""
    from_config: Callable[[Config], Architecture]
    from_gguf: Callable[[Header], Architecture]
    checkpoint_norms: Mapping[str, str]
    """Norm of a layer, by our name without `layers.{i}.` -> its module in a Hugging Face checkpoint."""
    norm_offset: float = 0.0
    """Added to every norm of a Hugging Face checkpoint (a GGUF file has it added already)."""
    rotated_in_pairs: bool = False
    """GGUF files of the family hold the rows of q and k so that rotated pairs are neighbours."""

    def checkpoint_names(self, arch: Architecture) -> Names:
        """Names in a Hugging Face checkpoint."""
        return _names(
            arch,
            embedding="model.embed_tokens",
            head="lm_head",
            final_norm="model.norm",
            layer="model.layers.{}.",
            matrices=CHECKPOINT_MATRICES,
            norms=self.checkpoint_norms,
        )

    def gguf_tensor_names(self, arch: Architecture) -> Names:
        """Names in a GGUF file."""
        return _names(
            arch,
            embedding="token_embd",
            head="output",
            final_norm="output_norm",
            layer="blk.{}.",
            matrices=GGUF_MATRICES,
            norms=GGUF_NORMS,
        )


CHECKPOINT_MATRICES = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}

PRE_NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
}
"""Checkpoint norms of the families that normalise before each half of a layer only."""

SANDWICH_NORMS = {
    **PRE_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
"""Checkpoint norms of the families that also normalise what each half adds."""

GGUF_MATRICES = {
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}

GGUF_NORMS = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "post_attention_norm": "post_attention_norm",
    "post_mlp_norm": "post_ffw_norm",
}


def _names(
    arch: Architecture,
    *,
    embedding: str,
    head: str,
    final_norm: str,
    layer: str,
    matrices: Mapping[str, str],
    norms: Mapping[str, str],
) -> Names:
    whole = {
        "embedding": embedding,
        "head": embedding if arch.tied else head,
        "final_norm": final_norm,
    }
    inside = {**matrices, **norms}
    names = {}
    for ours in [f"{site.name}.weight" for site in arch.sites] + list(arch.vectors):
        module, _, kind = ours.rpartition(".")
        if module in whole:
            names[ours] = f"{whole[module]}.{kind}"
        else:
            _, index, part = module.split(".", 2)
            names[ours] = f"{layer.format(index)}{inside[part]}.{kind}"
    return names
