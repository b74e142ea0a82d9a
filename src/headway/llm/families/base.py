"""`Architecture`: one description of a decoder-only language model, from which every runtime builds it.

The network, for tokens t of shape (T,):

    x = rows t of the embedding * embedding_scale                   (T, d_model)
    for each layer:
        h = norm(x; attention_norm)
        q, k, v = h Wq^T + bq, h Wk^T + bk, h Wv^T + bv             bias only where `qkv_bias`
        q, k = norm(q; q_norm), norm(k; k_norm)  over head_dim      only where `qk_norm`
        q, k = rope(q), rope(k)                                     pairs are (j, j + head_dim / 2)
        s = q k^T * query_scale;  s = cap * tanh(s / cap)           cap only where `attention_softcap`
        key j is seen by query i when j <= i and (no window or i - j < window)
        a = softmax(s) v Wo^T;  a = norm(a; post_attention_norm)    that norm only where `post_norms`
        x = x + a
        h = norm(x; mlp_norm)
        m = (activation(h Wgate^T) * (h Wup^T)) Wdown^T
        m = norm(m; post_mlp_norm)                                  only where `post_norms`
        x = x + m
    logits = norm(x; final_norm) Whead^T
    logits = cap * tanh(logits / cap)                               only where `final_softcap`

    norm(x; w) = x / sqrt(mean(x^2) + norm_eps) * w
    w is the whole multiplier: where a family stores w - 1, its loader has added the one.

Everything that multiplies a matrix is a site (`Architecture.sites`) and holds a `Weight`; everything else is
a float32 vector (`Architecture.vectors`). Both are named as in the readable torch module,
`headway.llm.reference.Reference`. Heads are in the order of Hugging Face checkpoints: query head h reads
key-value head h // (heads / kv_heads).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.model import Site

F32 = npt.NDArray[np.float32]

Activation = Literal["silu", "gelu_tanh"]

LIMITS: dict[str, int] = {
    "vocab": 1 << 22,
    "context": 1 << 27,
    "d_model": 1 << 16,
    "ffn": 1 << 18,
    "heads": 1 << 10,
    "kv_heads": 1 << 10,
    "head_dim": 1 << 10,
}
"""The largest value each size may take: far above any real model, far below what overflows."""

MAX_LAYERS = 1024


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: pair j of a head turns by position * inverse_frequencies[j] radians."""

    base: float = 10000.0
    scaling: Literal["none", "linear", "llama3", "yarn", "factors"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    """llama3 only."""
    high_freq_factor: float = 4.0
    """llama3 only."""
    original_context: int = 0
    """llama3 and yarn: the context before scaling."""
    beta_fast: float = 32.0
    """yarn only."""
    beta_slow: float = 1.0
    """yarn only."""
    attention_factor: float = 1.0
    """yarn only: cosine and sine are multiplied by it."""
    factors: tuple[float, ...] = ()
    """`factors` only: frequency j is divided by factors[j] (GGUF's rope_freqs)."""

    @property
    def scaling_is_sound(self) -> bool:
        """Whether the numbers that the scaling uses lie where its formula is defined."""
        if self.scaling == "factors":
            return all(1e-9 < factor < 1e9 for factor in self.factors)
        if self.scaling == "llama3":
            return self.original_context > 0 and 0.0 < self.low_freq_factor < self.high_freq_factor < 1e6
        if self.scaling == "yarn":
            turns = 0.0 < self.beta_slow < self.beta_fast < 1e6
            return self.original_context > 0 and turns and 0.0 < self.attention_factor < 1e6
        return True

    def inverse_frequencies(self, head_dim: int) -> F32:
        """Radians per position for each pair, float32 [head_dim / 2], every scaling applied."""
        half = head_dim // 2
        plain = self.base ** (-np.arange(half, dtype=np.float64) * 2.0 / head_dim)
        if self.scaling == "linear":
            plain = plain / self.factor
        elif self.scaling == "factors":
            plain = plain / np.asarray(self.factors, dtype=np.float64)
        elif self.scaling == "llama3":
            plain = self._llama3(plain)
        elif self.scaling == "yarn":
            plain = self._yarn(plain, head_dim)
        return plain.astype(np.float32)

    def _llama3(self, plain: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a linear blend between."""
        turns = self.original_context * plain / (2.0 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0.0, 1.0)
        return (1.0 - blend) * plain / self.factor + blend * plain

    def _yarn(self, plain: npt.NDArray[np.float64], head_dim: int) -> npt.NDArray[np.float64]:
        """YaRN (Peng et al. 2023, section 3.2), ramp borders at whole pairs as in the published code."""

        def pair_of(turns: float) -> float:
            wavelength = self.original_context / (turns * 2.0 * math.pi)
            return head_dim * math.log(wavelength) / (2.0 * math.log(self.base))

        low = max(math.floor(pair_of(self.beta_fast)), 0)
        high = min(math.ceil(pair_of(self.beta_slow)), head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
        return plain / self.factor * ramp + plain * (1.0 - ramp)


@dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer."""

    rope: Rope
    window: int = 0
    """Keys a query sees, itself included; 0 = all before it."""


@dataclass(frozen=True)
class Architecture:
    """The sizes and choices of one model; see the module's docstring for what each means in the network."""

    family: str
    vocab: int
    context: int
    d_model: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    norm_eps: float
    query_scale: float
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    qk_norm: bool = False
    qkv_bias: bool = False
    post_norms: bool = False
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    tied: bool = True
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field, limit in LIMITS.items():
            value = getattr(self, field)
            if not 1 <= value <= limit:
                raise BadInput(f"{self.family} model: {field}={value}", f"it must lie in 1..{limit}")
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise BadInput(f"{self.family} model: {len(self.layers)} layers", f"there must be 1..{MAX_LAYERS}")
        if self.heads % self.kv_heads:
            raise BadInput(
                f"{self.family} model: {self.heads} heads over {self.kv_heads} KV heads",
                "the first must be a multiple",
            )
        if self.head_dim % 2:
            raise BadInput(f"{self.family} model: head_dim={self.head_dim}", "rotary embedding needs an even one")
        for field in ("norm_eps", "query_scale", "embedding_scale"):
            value = getattr(self, field)
            if not (math.isfinite(value) and 0.0 < value < 1e9):
                raise BadInput(f"{self.family} model: {field}={value}", "it must be a positive finite number")
        for field in ("attention_softcap", "final_softcap"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0.0):
                raise BadInput(f"{self.family} model: {field}={value}", "it must be 0 (off) or a positive number")
        for token in (*self.eos, *(() if self.bos is None else (self.bos,))):
            if not 0 <= token < self.vocab:
                raise BadInput(f"{self.family} model: special token {token}", f"the vocabulary has {self.vocab}")
        for index, layer in enumerate(self.layers):
            self._check_layer(index, layer)

    def _check_layer(self, index: int, layer: Layer) -> None:
        rope = layer.rope
        if not 0 <= layer.window < 1 << 31:
            raise BadInput(f"{self.family} layer {index}: window={layer.window}", "it must be 0 (none) or positive")
        if not (math.isfinite(rope.base) and rope.base > 1.0 and math.isfinite(rope.factor) and rope.factor > 0.0):
            raise BadInput(
                f"{self.family} layer {index}: rope base={rope.base} factor={rope.factor}",
                "the base must exceed 1 and the factor 0",
            )
        if rope.scaling == "factors" and len(rope.factors) != self.head_dim // 2:
            raise BadInput(
                f"{self.family} layer {index}: {len(rope.factors)} rope factors",
                f"there must be {self.head_dim // 2}",
            )
        if not rope.scaling_is_sound:
            raise BadInput(
                f"{self.family} layer {index}: {rope.scaling} rope scaling of {rope}", "check the rope settings"
            )
        if not np.isfinite(rope.inverse_frequencies(self.head_dim)).all():
            raise BadInput(f"{self.family} layer {index}: rope frequencies are not finite", "check the rope settings")

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every matrix, in execution order. A tied embedding and head are one site, `head`, the last."""
        sites = [] if self.tied else [Site("embedding", self.vocab, self.d_model, "embedding")]
        for index in range(len(self.layers)):
            sites += self._layer_sites(f"layers.{index}")
        return (*sites, Site("head", self.vocab, self.d_model, "head"))

    def _layer_sites(self, at: str) -> Iterator[Site]:
        yield Site(f"{at}.attention.q", self.q_size, self.d_model)
        yield Site(f"{at}.attention.k", self.kv_size, self.d_model)
        yield Site(f"{at}.attention.v", self.kv_size, self.d_model)
        yield Site(f"{at}.attention.o", self.d_model, self.q_size)
        yield Site(f"{at}.mlp.gate", self.ffn, self.d_model)
        yield Site(f"{at}.mlp.up", self.ffn, self.d_model)
        yield Site(f"{at}.mlp.down", self.d_model, self.ffn)

    @cached_property
    def vectors(self) -> Mapping[str, int]:
        """Every float32 vector: name (a key of the torch module's state_dict) -> length."""
        vectors: dict[str, int] = {}
        for index in range(len(self.layers)):
            at = f"layers.{index}"
            vectors[f"{at}.attention_norm.weight"] = self.d_model
            if self.qkv_bias:
                vectors[f"{at}.attention.q.bias"] = self.q_size
                vectors[f"{at}.attention.k.bias"] = self.kv_size
                vectors[f"{at}.attention.v.bias"] = self.kv_size
            if self.qk_norm:
                vectors[f"{at}.attention.q_norm.weight"] = self.head_dim
                vectors[f"{at}.attention.k_norm.weight"] = self.head_dim
            if self.post_norms:
                vectors[f"{at}.post_attention_norm.weight"] = self.d_model
            vectors[f"{at}.mlp_norm.weight"] = self.d_model
            if self.post_norms:
                vectors[f"{at}.post_mlp_norm.weight"] = self.d_model
        vectors["final_norm.weight"] = self.d_model
        return vectors

    @property
    def embedding_site(self) -> str:
        """The site whose rows embed tokens."""
        return "head" if self.tied else "embedding"

    @property
    def parameters(self) -> int:
        return sum(site.parameters for site in self.sites) + sum(self.vectors.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values for headway.json; `from_json` gives an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Architecture:
        """Raises `BadInput` naming a missing, unknown or ill-typed field."""
        try:
            layers = tuple(
                Layer(Rope(**{**layer["rope"], "factors": tuple(layer["rope"]["factors"])}), layer["window"])
                for layer in values["layers"]
            )
            return cls(**{**values, "layers": layers, "eos": tuple(values["eos"])})
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"architecture: {error}", "write the artifact again with this version") from None
