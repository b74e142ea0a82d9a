"""Small random models for tests of the native step, and the readable network with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headway.llm.families.base import Architecture, Layer, Rope
from headway.llm.reference import Reference
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.grouped import Int4Weight, Int8Weight

Weights = dict[str, Any]
Vectors = dict[str, np.ndarray[Any, Any]]

PLAIN = Rope()
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True, "tied": False},
    "qwen3": {"qk_norm": True, "head_dim": 24, "query_scale": 24**-0.5},
    "mistral": {"layers": (Layer(PLAIN, 5), Layer(PLAIN, 100))},
    "llama3": {
        "layers": (
            Layer(Rope(base=5e5, scaling="llama3", factor=8.0, original_context=64)),
            Layer(Rope(scaling="yarn", factor=4.0, original_context=64, attention_factor=1.1)),
        )
    },
    "gemma3": {
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embedding_scale": 48**0.5,
        "layers": (Layer(PLAIN, 7), Layer(Rope(base=1e6, scaling="linear", factor=8.0))),
        "kv_heads": 1,
    },
    "gemma2": {"attention_softcap": 5.0, "final_softcap": 3.0, "layers": (Layer(PLAIN, 600), Layer(PLAIN))},
    "odd": {"d_model": 70, "head_dim": 10, "heads": 7, "kv_heads": 1, "ffn": 33, "vocab": 101},
}


def architecture(name: str, **changes: Any) -> Architecture:
    sizes: dict[str, Any] = {
        "family": name,
        "vocab": 97,
        "context": 8192,
        "d_model": 48,
        "ffn": 80,
        "heads": 6,
        "kv_heads": 2,
        "head_dim": 8,
        "layers": (Layer(PLAIN), Layer(PLAIN)),
        "norm_eps": 1e-5,
        "query_scale": 8**-0.5,
    }
    return Architecture(**{**sizes, **FAMILIES[name], **changes})


def random_parts(arch: Architecture, form: str = "dense", seed: int = 0) -> tuple[Weights, Vectors]:
    """Weights by site, in the stored form asked for, and vectors by name."""
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for site in arch.sites:
        values = random.standard_normal((site.out_features, site.in_features)) / site.in_features**0.5
        groups = (site.out_features, -(-site.in_features // 32))
        if form == "dense":
            weights[site.name] = DenseWeight(values.astype(np.float32))
        elif form == "int8":
            codes = np.clip(np.rint(values * 100 * site.in_features**0.5), -128, 127).astype(np.int8)
            scale = np.full(groups, 0.01 / site.in_features**0.5, np.float32)
            weights[site.name] = Int8Weight(codes, scale, group_size=32)
        else:
            codes = np.clip(np.rint(values * 4 * site.in_features**0.5 + 8), 0, 15).astype(np.uint8)
            scale = np.full(groups, 0.25 / site.in_features**0.5, np.float16)
            weights[site.name] = Int4Weight(codes, scale, -8 * scale, group_size=32)
    vectors = {
        name: (random.uniform(0.5, 1.5, size) if "norm" in name else random.normal(0, 0.5, size)).astype(np.float32)
        for name, size in arch.vectors.items()
    }
    return weights, vectors


def reference_logits(
    arch: Architecture, weights: Weights, vectors: Vectors, tokens: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Logits (tokens, vocab) of the readable network, in float64."""
    net = Reference(arch).eval()
    state = {}
    for key in net.state_dict():
        site = key.removesuffix(".weight")
        value = vectors[key] if key in vectors else weights[site].dequantize()
        state[key] = torch.from_numpy(np.array(value, np.float32))
    net.load_state_dict(state)
    net.double()
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = net(torch.from_numpy(tokens)[None])[0].numpy()
    return logits
