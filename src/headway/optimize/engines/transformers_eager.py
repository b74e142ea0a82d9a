"""transformers' own implementation, eager, with its `DynamicCache`: float32, or bfloat16 as `transformers:bf16`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from headway.core.errors import BadInput, Lacking
from headway.llm.families.base import Architecture
from headway.llm.families.table import family_named
from headway.llm.language_model import LanguageModel
from headway.llm.scoring import F32, I64, chunks
from headway.optimize.engines.base import DECODED, Repeat
from headway.optimize.engines.torch_eager import EagerEngine


def make(model: LanguageModel, variant: str, threads: int) -> list[TransformersEngine]:
    """Threads are as set for the process."""
    return [TransformersEngine(model, variant)]


class TransformersEngine(EagerEngine):
    """The file's weights, dequantised to the data type."""

    peer = "transformers"

    def __init__(self, model: LanguageModel, variant: str = "") -> None:
        try:
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise Lacking(f"{error.name} is not installed", "pip install torch transformers") from None
        arch = model.architecture
        module: Any = transformers.AutoModelForCausalLM.from_config(_config(transformers, arch))
        module.load_state_dict({name: torch.from_numpy(value) for name, value in _checkpoint(model).items()})
        super().__init__(module, variant, arch.vocab)
        self.transformers, self.version = transformers, transformers.__version__

    def prefill(self, tokens: I64) -> Repeat:
        fed = self.batch(tokens)

        def repeat() -> None:
            with self.torch.inference_mode():
                self.module(fed, use_cache=True, logits_to_keep=1)

        return repeat

    def decode(self, tokens: I64, batch: int, depth: int) -> Repeat:
        fed = self.batch(tokens).expand(batch, -1)
        cache = self.transformers.DynamicCache()
        with self.torch.inference_mode():
            self.module(fed[:, :depth], past_key_values=cache, logits_to_keep=1)

        def repeat() -> None:
            with self.torch.inference_mode():
                for at in range(DECODED):
                    self.module(fed[:, at : at + 1], past_key_values=cache)
            cache.crop(-DECODED)  # a positive length is refused since transformers 5

        return repeat

    def predictions(self, part: I64) -> Iterator[tuple[int, F32]]:
        cache = self.transformers.DynamicCache()
        for at, end in chunks(len(part) - 1, self.vocabulary):
            with self.torch.inference_mode():
                yield at, self.module(self.batch(part[at:end]), past_key_values=cache).logits[0].float().numpy()


def _checkpoint(model: LanguageModel) -> dict[str, F32]:
    """The exact values under the names of a Hugging Face checkpoint."""
    arch = model.architecture
    family = family_named(arch.family)
    names = family.checkpoint_names(arch)
    values = {names[f"{site.name}.weight"]: np.array(model.weight(site.name).dequantize()) for site in arch.sites}
    if arch.tied:
        values["lm_head.weight"] = values[names["head.weight"]]
    for name, vector in model.vectors.items():
        offset = family.norm_offset if name.endswith("norm.weight") else 0.0
        values[names[name]] = vector - np.float32(offset)
    return values


def _config(transformers: Any, arch: Architecture) -> Any:
    """Raises `BadInput` for an architecture that is not spelled out here."""
    ropes = {("sliding_attention" if layer.window else "full_attention"): layer.rope for layer in arch.layers}
    if arch.family not in ("llama", "gemma3") or any(rope.scaling != "none" for rope in ropes.values()):
        raise BadInput(f"transformers is not timed on {arch.family} with these ropes", "leave it out of --against")
    parameters = {kind: {"rope_type": "default", "rope_theta": rope.base} for kind, rope in ropes.items()}
    sizes: dict[str, Any] = {
        "vocab_size": arch.vocab,
        "hidden_size": arch.d_model,
        "intermediate_size": arch.ffn,
        "num_hidden_layers": len(arch.layers),
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "max_position_embeddings": arch.context,
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tied,
        "pad_token_id": None,
    }
    if arch.family == "llama" and list(ropes) == ["full_attention"]:
        return transformers.LlamaConfig(**sizes, rope_parameters=parameters["full_attention"])
    return transformers.Gemma3TextConfig(
        **sizes,
        rope_parameters=parameters,
        layer_types=["sliding_attention" if layer.window else "full_attention" for layer in arch.layers],
        sliding_window=max(layer.window for layer in arch.layers),
        query_pre_attn_scalar=round(arch.query_scale**-2),
        final_logit_softcapping=arch.final_softcap or None,
        attn_logit_softcapping=arch.attention_softcap or None,
    )
